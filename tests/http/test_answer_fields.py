"""What of a box's fields passes on the site's origin, and what is said in its place (api.md, "What the proxy …")."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.http.answer_names import DROPPED, PASSES
from tests.http.helpers import MOUNT, head, read, via
from tunnel.http import Exchange, ExchangeError, Field, OrdinaryAnswers
from tunnel.http.fields import ANSWER_RULES, DROP, PASS, RuleTable

OK = b"HTTP/1.1 200 OK\r\n"
NOSNIFF = (b"X-Content-Type-Options", b"nosniff")
SANDBOX = (b"Content-Security-Policy", b"sandbox")
UNFRAMED = (b"X-Frame-Options", b"DENY")
REFERRER = (b"Referrer-Policy", b"same-origin")
OURS = (NOSNIFF, UNFRAMED, REFERRER, SANDBOX)
ADDED: list[Field] = [(b"Cache-Control", b"private"), (b"Vary", b"Authorization, Origin"), *OURS]


def passed(*lines: bytes, **options: Any) -> list[Field]:
    reader, _, error = read(OK + b"".join(line + b"\r\n" for line in (*lines, b"Content-Length: 0", b"")), **options)
    assert error is None
    assert reader.head is not None
    return reader.head.fields


# --- what passes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PASSES)
def test_what_a_box_may_say(name: bytes) -> None:
    assert passed(name + b": 1", name.upper() + b": 2") == [(name, b"1"), (name.upper(), b"2"), *ADDED]


@pytest.mark.parametrize("name", DROPPED)
def test_what_a_box_may_not_say(name: bytes) -> None:
    assert passed(name + b": 1", name.upper() + b": 2", name.lower() + b": 3", b"X-Kept: 1") == [
        (b"X-Kept", b"1"),
        *ADDED,
    ]


def test_a_websockets_fields_pass_with_the_switch_alone() -> None:
    said = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\nSec-WebSocket-Protocol: b\r\n\r\n"
    reader, _, _ = read(b"HTTP/1.1 101 S\r\n" + said, upgrade=True)
    assert reader.head is not None
    kept = [(b"Sec-WebSocket-Accept", b"a"), (b"Sec-WebSocket-Protocol", b"b")]
    assert reader.head.fields == [*kept, *ADDED]
    refused, _, _ = read(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n" + said, upgrade=True)
    assert refused.head is not None
    assert refused.head.fields == ADDED


def test_a_crowd_of_names_takes_neither_memory_nor_the_usual_ones() -> None:
    table = RuleTable(lambda lower: PASS if lower == b"etag" else DROP, [b"etag"])
    for number in range(5000):
        table.learn(b"x" * 60 + b"%d" % number)
        table.learn(b"y" * 60_000)
    assert len(table._known) <= 2048
    assert max(map(len, table._known)) <= 64
    assert table.find(b"Etag") == table.find(b"etag") == PASS
    assert ANSWER_RULES.find(b"content-type") == ANSWER_RULES.find(b"Content-Type") == PASS


# --- ours -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("option", [b"Content-Security-Policy", b"x-content-type-options", b"Cache-Control, Vary, X-A"])
def test_no_nomination_takes_ours_off(option: bytes) -> None:
    lines = (
        b"Content-Security-Policy: sandbox",
        b"X-Content-Type-Options: nosniff",
        b"X-A: 1",
        b"Connection: " + option,
    )
    assert passed(*lines)[-len(ADDED) :] == ADDED


NAMES = st.sampled_from(
    b"Content-Security-Policy content-security-policy Content-Security-Policy-Report-Only X-Content-Type-Options"
    b" X_Content_Type_Options Connection Cache-Control Vary Location Transfer-Encoding Content-Length X-A Set-Cookie"
    b" WWW-Authenticate Upgrade Keep-Alive".split()
)
VALUES = st.one_of(
    st.sampled_from(
        [
            b"sandbox",
            b"sandbox allow-scripts allow-same-origin",
            b"nosniff",
            b"close, content-security-policy",
            b"X-Content-Type-Options,Content-Security-Policy,Cache-Control,Vary",
            b"public, s-maxage=99, must-revalidate",
            b'x="a, no-store, b"',
            b"no-store",
            b"*",
            b"chunked",
            b"5",
            b"",
        ]
    ),
    st.text(st.characters(codec="latin-1"), max_size=40).map(lambda text: text.encode("latin-1")),
)
ENDS = st.sampled_from([b"\r\n", b"\n"])
LINES = st.tuples(NAMES, st.sampled_from([b":", b": ", b" : ", b"\t:"]), VALUES, ENDS).map(b"".join)


def lines_of(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a head that goes to a client."""
    lines = raw.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]


def check(raw: bytes) -> None:
    """What must hold of any head of a box's answer that a client gets."""
    fields = lines_of(raw)
    for name, value in OURS:
        assert [said for field, said in fields if field == name.lower()] == [value]
    (control,) = [said for field, said in fields if field == b"cache-control"]
    directives = [each.strip().partition(b"=")[0].lower() for each in control.split(b",")]
    assert b"private" in directives or b"no-store" in directives
    assert not {b"public", b"s-maxage", b"must-revalidate"} & set(directives) or b'"' in control
    (vary,) = [said for field, said in fields if field == b"vary"]
    assert b"authorization" in vary.lower()
    assert not {b"set-cookie", b"www-authenticate"} & {field for field, _ in fields}


@given(
    st.sampled_from([200, 201, 204, 206, 302, 304, 401, 404, 500, 599, 600, 99]),
    st.lists(LINES, max_size=8),
    ENDS,
    st.sampled_from([b"GET", b"HEAD"]),
)
@example(200, [b"Content-Security-Policy: sandbox\r\n", b"Connection: Content-Security-Policy\r\n"], b"\r\n", b"GET")
@example(200, [b"Content-Security-Policy: x\r\n", b"Connection: x-content-type-options\r\n"], b"\r\n", b"GET")
def test_any_answer_has_ours(status: int, lines: list[bytes], end: bytes, method: bytes) -> None:
    """Whatever a box says: either no answer of it, or one that is sandboxed, not sniffed, and nobody else's."""
    raw = b"HTTP/1.1 %d X\r\n" % status + b"".join(lines) + end
    exchange = Exchange(head(method, MOUNT + b"/x"), via(mount=MOUNT))
    exchange.start()
    try:
        exchange.receive(raw)
    except ExchangeError:
        return
    if exchange.answer is None:
        return
    assert 200 <= exchange.answer.status < 600
    check(exchange.client_head())
    kept = OrdinaryAnswers()
    for _ in range(2):
        whole = kept.read(raw, request_id=b"req_1", fields=b"", head_only=method == b"HEAD")
        if whole is not None:
            check(whole.out)
            assert whole.out == exchange.client_head()


# --- caching ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([b"max-age=5"], b"max-age=5, private"),
        ([b"no-store"], b"no-store"),
        ([b"No-Store, max-age=0"], b"No-Store, max-age=0"),
        ([b"no-cache"], b"no-cache, private"),
        ([b"private, max-age=5"], b"private, max-age=5"),
        ([b"public, max-age=31536000, immutable"], b"max-age=31536000, immutable, private"),
        ([b"PUBLIC", b"S-MaxAge=9"], b"private"),
        ([b"public", b"no-store"], b"no-store"),
        ([b"must-revalidate, proxy-revalidate, no-transform"], b"no-transform, private"),
        ([b'private="x-a", max-age=5'], b"max-age=5, private"),
        ([b'no-cache="set-cookie, x"'], b'no-cache="set-cookie, x", private'),
        ([b'x="a, no-store, b"'], b'x="a, no-store, b", private'),
        ([b'x="\\", no-store, "'], b'x="\\", no-store, ", private'),
        ([b""], b"private"),
        ([b" , ,"], b"private"),
        ([b"public;max-age=5"], b"private"),
        ([b"no-cache; no-store"], b"no-store"),
        ([b'max-age="5'], b"private"),
        ([b"max-age = 5, public"], b"private"),
        ([b"s-maxage=5 public"], b"private"),
    ],
)
def test_caching_is_private_at_least(said: list[bytes], told: bytes) -> None:
    for _ in range(2):
        assert (b"Cache-Control", told) in passed(*[b"cache-control: " + value for value in said])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([b"Accept"], b"Accept, Authorization, Origin"),
        ([b"accept", b"origin, AUTHORIZATION"], b"accept, origin, AUTHORIZATION"),
        ([b"*"], b"*, Authorization, Origin"),
        ([b""], b"Authorization, Origin"),
    ],
)
def test_vary_names_the_credential(said: list[bytes], told: bytes) -> None:
    assert (b"Vary", told) in passed(*[b"Vary: " + value for value in said])


# --- where to go ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [b"Location", b"Content-Location"])
@pytest.mark.parametrize(
    ("value", "mounted"),
    [
        (b"/x?y", MOUNT + b"/x?y"),
        (b"/", MOUNT + b"/"),
        (b"/\\evil", MOUNT + b"/\\evil"),
        (b"//other/x", b"//other/x"),
        (b"x/y", MOUNT + b"/x/y"),  # the client may have asked for the mount itself, without a slash behind it
        (b"../x", MOUNT + b"/x"),
        (b"?a", b"?a"),
        (b"", b""),
        (b"http://cloud:3800/x?y#z", MOUNT + b"/x?y#z"),
        (b"HTTPS://Cloud:3800/x", MOUNT + b"/x"),
        (b"//cloud:3800/x", MOUNT + b"/x"),
        (b"http://cloud:3800", MOUNT + b"/"),
        (b"http://cloud:3800?y", MOUNT + b"/?y"),
        (b"http://cloud:3800//x", MOUNT + b"//x"),
        (b"http://shown/x", MOUNT + b"/x"),
        (b"https://shown:443/x", MOUNT + b"/x"),
        (b"http://cloud/x", b"http://cloud/x"),
        (b"http://other:3800/x", b"http://other:3800/x"),
        (b"http://cloud:3800@other/x", b"http://cloud:3800@other/x"),
        (b"http://cloud:38000/x", b"http://cloud:38000/x"),
        (b"ftp://cloud:3800/x", b"ftp://cloud:3800/x"),
        (MOUNT + b"/x", MOUNT + b"/x"),
        (b"http://cloud:3800" + MOUNT + b"?x", MOUNT + b"?x"),
        (MOUNT + b"x", MOUNT + MOUNT + b"x"),
    ],
)
def test_a_url_of_the_box_lies_below_the_mount(name: bytes, value: bytes, mounted: bytes) -> None:
    hosts = (b"cloud:3800", b"shown", b"")
    assert passed(name + b": " + value, mount=MOUNT, hosts=hosts)[0] == (name, mounted)
    assert passed(name + b": " + value, hosts=hosts)[0] == (name, value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"0; url=/next", b"0; url=" + MOUNT + b"/next"),
        (b"5;URL='/a b'", b"5;URL='" + MOUNT + b"/a b'"),
        (b'1.5 , url = "http://cloud/x" y', b'1.5 , url = "' + MOUNT + b'/x"'),
        (b"0; /next", b"0; " + MOUNT + b"/next"),
        (b"0 /next", b"0 " + MOUNT + b"/next"),
        (b"0; url=http://other/x", b"0; url=http://other/x"),
        (b"0; url=next", b"0; url=" + MOUNT + b"/next"),
        (b"0; url='/../x'", b"0; url='" + MOUNT + b"/x'"),
        (b"30", b"30"),
        (b"", b""),
    ],
)
def test_a_refresh_goes_below_the_mount(value: bytes, told: bytes) -> None:
    assert passed(b"Refresh: " + value, mount=MOUNT, hosts=(b"cloud",))[0] == (b"Refresh", told)
    assert passed(b"Refresh: " + value, hosts=(b"cloud",))[0] == (b"Refresh", value)


def test_the_host_that_the_box_was_given() -> None:
    """Its Host field, and what a trusted proxy says that the client used."""
    given = head(b"GET", MOUNT + b"/x", (b"X-Forwarded-Host", b"shown.example"), host=b"inner:8080")
    for trusted, mounted in ((True, MOUNT + b"/y"), (False, b"https://shown.example/y")):
        exchange = Exchange(given, via(mount=MOUNT, trusted=trusted))
        exchange.start()
        exchange.receive(
            b"HTTP/1.1 302 F\r\nLocation: https://shown.example/y\r\nContent-Location: http://inner:8080/z\r\n\r\n"
        )
        assert exchange.answer is not None
        assert exchange.answer.fields[:2] == [(b"Location", mounted), (b"Content-Location", MOUNT + b"/z")]


def test_what_needs_the_mount_is_no_ordinary_answer() -> None:
    for line in (b"Location: /x", b"Content-Location: /x", b"Refresh: 0; url=/x"):
        raw = b"HTTP/1.1 201 C\r\n" + line + b"\r\nContent-Length: 0\r\n\r\n"
        assert OrdinaryAnswers().read(raw, request_id=b"r", fields=b"", head_only=False) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX: y\n\nabc\r\n\r\nEXTRA77",
        b"HTTP/1.1 204 No\n\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: y\n\nabc\r\n\r\n",
    ],
)
def test_a_head_that_ends_earlier_than_its_crlfs_is_no_ordinary_answer(raw: bytes) -> None:
    assert OrdinaryAnswers().read(raw, request_id=b"r", fields=b"", head_only=False) is None
