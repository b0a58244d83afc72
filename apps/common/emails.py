"""When two e-mail addresses are one: the normal form by which everything here compares them, made in this place alone.

PostgreSQL's `lower()` follows the server's locale and Python's another table (`İ`, the Kelvin sign), so neither is
asked: an address is looked up, counted, linked and kept unique by its key. What can be registered is an address that
is its own key but for the case of ASCII letters, so that no two mailboxes share a key and every address can be
written into a mail as it stands. It knows neither users nor the database.
"""

import hashlib
import unicodedata
from typing import Final

import idna
from django.core.exceptions import ValidationError
from django.core.validators import EmailValidator, validate_email
from django.utils.translation import gettext as _

MAX_CHARACTERS: Final = 254
"""RFC 5321 §4.5.3.1.3: a path of 256 octets less its angle brackets."""


def email_key(address: str) -> str:
    """The normal form of an address: NFKC, the domain by UTS 46 in ASCII, case folded.

    Defined for any text (people type passwords where an e-mail is asked for), the same for its own result, and never
    longer than MAX_CHARACTERS; for what is no address it is a text that no address has as its key.
    """
    local, at, domain = unicodedata.normalize("NFKC", address).rpartition("@")
    key = f"{_folded(local)}{at}{_ascii_domain(domain)}"
    if len(key) <= MAX_CHARACTERS:
        return key
    return f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}@too-long.invalid"


def check_email(address: str) -> None:
    """Whether the address can be kept. Raises ValidationError with what to write instead, if there is such a thing."""
    key = email_key(address)
    if address.isascii() and address.lower() == key and len(address) <= MAX_CHARACTERS:
        validate_email(address)
        return
    local, _at, domain = address.rpartition("@")
    normal = f"{local}@{_ascii_domain(domain)}"
    if normal != address and normal.isascii() and normal.lower() == key:
        validate_email(normal)
        raise ValidationError(_("Write this address as %(normal)s."), code="invalid", params={"normal": normal})
    raise ValidationError(EmailValidator.message, code="invalid")


def kept_form(address: str) -> str:
    """The address as it can be kept, its domain in ASCII; empty if it cannot be. For addresses that others tell us."""
    local, _at, domain = address.rpartition("@")
    for form in (address, f"{local}@{_ascii_domain(domain)}"):
        try:
            check_email(form)
        except ValidationError:
            continue
        return form
    return ""


def _folded(text: str) -> str:
    """NFKC and case folding until neither changes anything: folding can undo the normal form (Unicode §3.13, D145)."""
    if text.isascii():
        return text.lower()
    while (folded := unicodedata.normalize("NFKC", text.casefold())) != text:
        text = folded
    return text


def _ascii_domain(domain: str) -> str:
    """The domain as the DNS is asked for it; one that IDNA does not know is folded, and otherwise stays as it is.

    Not folded beforehand: `straße` and `strasse` are two domains.
    """
    folded = _folded(domain)
    for form in (unicodedata.normalize("NFKC", domain), folded) if not domain.isascii() else ():
        try:
            return idna.encode(form, uts46=True, std3_rules=True).decode().rstrip(".")
        except UnicodeError:  # what idna raises is one
            continue
    return folded.rstrip(".")
