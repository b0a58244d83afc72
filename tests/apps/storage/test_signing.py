"""Signed paths: what passes, and every way in which a forged one does not. Pure."""

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.storage import signing
from apps.storage.signing import Forged, Grant, sign, verify

SECRETS = ("first", "second")
PUT = Grant("PUT", "uploads/ab", 10, 1_000)
GET = Grant("GET", "models/ab/cd", 10, 1_000, "名 前.nef", "0" * 64)


def passes(text, secrets=SECRETS, method="PUT", now=999.0):
    try:
        verify(text, secrets, method=method, now=now)
    except Forged:
        return False
    return True


def test_what_was_signed_comes_back():
    assert verify(sign(PUT, SECRETS), SECRETS, method="PUT", now=0) == PUT
    assert verify(sign(GET, SECRETS), SECRETS, method="GET", now=0) == GET
    assert verify(sign(GET, SECRETS), SECRETS, method="HEAD", now=0) == GET


def test_it_names_its_owner_and_one_of_the_last_release_named_none():
    owned = Grant("GET", "models/ab/cd", 10, 1_000, "x", "0" * 64, "somebody")
    assert verify(sign(owned, SECRETS), SECRETS, method="GET", now=0) == owned
    claims = signing._encode(json.dumps(["PUT", "uploads/ab", 10, 1_000, "", ""], separators=(",", ":")).encode())
    text = f"{claims}.{signing._signature(claims, SECRETS[0])}"
    assert verify(text, SECRETS, method="PUT", now=0) == PUT


def test_it_is_bound_to_its_method():
    assert not passes(sign(PUT, SECRETS), method="GET")
    assert not passes(sign(PUT, SECRETS), method="HEAD")
    assert not passes(sign(GET, SECRETS), method="PUT")


def test_it_ends():
    assert passes(sign(PUT, SECRETS), now=999.9)
    assert not passes(sign(PUT, SECRETS), now=1_000)


def test_the_first_secret_signs_and_all_verify():
    assert passes(sign(PUT, ("old",)), ("new", "old"))
    assert passes(sign(PUT, ("new", "old")), ("new",))
    assert not passes(sign(PUT, ("old",)), ("new",))


@given(st.integers(0, 10_000), st.integers(0, 63))
def test_no_character_can_be_changed(place, value):
    text = sign(GET, SECRETS)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    place %= len(text)
    altered = text[:place] + alphabet[value] + text[place + 1 :]
    assert passes(altered, method="GET") == (altered == text)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t + "=",
        lambda t: t + ".",
        lambda t: t + "A",
        lambda t: t[:-1],
        lambda t: "." + t,
        lambda t: t.replace(".", ""),
        lambda t: t.partition(".")[0],
        lambda t: t.partition(".")[0] + ".",
        lambda t: "." + t.partition(".")[2],
        lambda t: t.upper(),
        lambda t: t + "é",
        lambda t: "x" * 5_000,
        lambda t: "",
        lambda t: ".",
    ],
)
def test_other_spellings(change):
    assert not passes(change(sign(PUT, SECRETS)))


@pytest.mark.parametrize(
    "claims",
    [None, [], {}, "x", [1], ["PUT", "uploads/ab", 10, "later", "", ""], ["PUT", "k", 1, 2000, "", "", "", "more"]],
)
def test_claims_that_make_no_grant(claims):
    """Nobody without the secret gets here; and a release that signs otherwise is refused, not a crash."""
    text = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    assert not passes(f"{text}.{signing._signature(text, 'first')}")


def test_a_signature_of_another_purpose_is_none():
    claims = sign(PUT, SECRETS).partition(".")[0]
    plain = base64.urlsafe_b64encode(hmac.digest(b"first", claims.encode(), hashlib.sha256)).decode().rstrip("=")
    assert not passes(f"{claims}.{plain}")
