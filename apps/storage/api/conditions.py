"""Whether a request with conditions may be carried out (RFC 9110 §13). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from django.utils.http import parse_http_date_safe

Verdict = Literal["go on", "unchanged", "failed"]
_READING: Final = frozenset({"GET", "HEAD"})


def evaluate(method: str, fields: Mapping[str, str], tag: str | None, modified: int) -> Verdict:
    """What the conditions of a request say, in the order of RFC 9110 §13.2.2.

    Args:
        fields: the request's, by name.
        tag: the strong entity tag of what is there, in quotes; None where there is nothing.
        modified: when it was last changed, in seconds since 1970; of no meaning where there is nothing.

    Returns:
        `failed` (412) where the state is not the one that the caller takes for granted; `unchanged` (304) where a
        reader has it already.
    """
    match, unmodified = fields.get("If-Match"), fields.get("If-Unmodified-Since")
    if match is not None:
        if tag is None or not _named(tag, match, weak=False):
            return "failed"
    elif unmodified is not None:
        until = parse_http_date_safe(unmodified)
        if until is not None and (tag is None or modified > until):  # what is no date counts as absent
            return "failed"
    none_match, since = fields.get("If-None-Match"), fields.get("If-Modified-Since")
    if none_match is not None:
        if tag is not None and _named(tag, none_match, weak=True):
            return "unchanged" if method in _READING else "failed"
    elif since is not None and method in _READING:
        after = parse_http_date_safe(since)
        if tag is not None and after is not None and modified <= after:
            return "unchanged"
    return "go on"


def _named(tag: str, header: str, *, weak: bool) -> bool:
    """Whether a list of tags names this one. `weak`: a `W/` makes no difference; else it never matches."""
    if header.strip() == "*":
        return True
    return any((each.strip().removeprefix("W/") if weak else each.strip()) == tag for each in header.split(","))
