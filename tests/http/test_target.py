"""Raw paths, and what of a query is ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.helpers import DEVICE, MOUNT, head, via
from tunnel.http import Exchange, ProxyError, is_device_id, own_params
from tunnel.http.target import box_path, split_query, split_target


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/a",
        b"/a/",
        b"/a%2Fb",
        b"/a%2fb//c",
        b"/a/./b",
        b"/%2Fdev%2Fvideo0",
        b"/..a/a../...",
        b"/a%00b",
        b"/%zz",
        b"/100%25",
        b"/a;b=c",
        b"/http://other/x",
        b"/\xe4".replace(b"\xe4", b"%E4"),
        "/相機/ä".encode(),
        b"/:@!$&'()*+,;=-._~",
    ],
)
@pytest.mark.parametrize("mount", [b"", MOUNT])
def test_a_path_passes_byte_for_byte(path: bytes, mount: bytes) -> None:
    assert box_path(mount + path, mount) == path


@pytest.mark.parametrize(
    "path",
    [
        b"/\\evil.example/x",
        b"/..",
        b"/../x",
        b"/a/../../x",
        b"/a/..",
        b"/%2e%2e/x",
        b"/%2E%2e/x",
        b"/.%2e/x",
        b"/a/%2e./x",
        b"/..%2Fx",
        b"/%2e%2e%2fx",
        b"/a\\..\\x",
        b"/..%5Cx",
        b"/..%5cx",
        b"/%252e%252e/x",
        b"/%25252e%25252e/x",
        b"/..;/x",
        b"/..;a=b/x",
        b"/%2e%2e;/x",
    ],
)
@pytest.mark.parametrize("mount", [b"", MOUNT])
def test_a_path_that_could_leave_its_prefix_is_refused(path: bytes, mount: bytes) -> None:
    with pytest.raises(ProxyError) as caught:
        box_path(mount + path, mount)
    assert caught.value.code == "BAD_REQUEST"


@pytest.mark.parametrize("path", [b"/d/other/x", MOUNT + b"x/y", MOUNT[:-1] + b"/x", b"/", MOUNT.upper() + b"/x"])
def test_a_path_outside_the_mount_is_refused(path: bytes) -> None:
    with pytest.raises(ProxyError):
        box_path(path, MOUNT)


def test_two_slashes_pass_behind_a_mount_alone() -> None:
    assert box_path(MOUNT + b"//x//y", MOUNT) == b"//x//y"
    with pytest.raises(ProxyError):
        box_path(b"//evil.example/x", b"")
    with pytest.raises(ProxyError):
        box_path(MOUNT + b"//../x", MOUNT)


def test_the_mount_itself_is_the_root_of_the_box() -> None:
    assert box_path(MOUNT, MOUNT) == b"/"
    assert box_path(MOUNT + b"/", MOUNT) == b"/"


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (b"http://evil.example/x", "BAD_REQUEST"),
        (b"HTTP://evil.example/x", "BAD_REQUEST"),
        (b"evil.example:80", "BAD_REQUEST"),
        (b"*", "BAD_REQUEST"),
        (b"", "BAD_REQUEST"),
        (b"x", "BAD_REQUEST"),
        (b"?a", "BAD_REQUEST"),
        (b"/a b", "BAD_REQUEST"),
        (b"/a#b", "BAD_REQUEST"),
        (b"/a?b#c", "BAD_REQUEST"),
        (b"/a\r\nX: y", "BAD_REQUEST"),
        (b"/a\n", "BAD_REQUEST"),
        (b"/a\0", "BAD_REQUEST"),
        (b"/a\x7f", "BAD_REQUEST"),
        (b"/\xe4", "BAD_REQUEST"),
        (b"/\xc0\xae\xc0\xae/x", "BAD_REQUEST"),
        (b"/" + b"a" * 8192, "URI_TOO_LONG"),
    ],
)
def test_a_target_in_another_form_is_refused(target: bytes, code: str) -> None:
    with pytest.raises(ProxyError) as caught:
        Exchange(head(b"GET", target), via())
    assert caught.value.code == code


def test_the_longest_target_passes() -> None:
    assert split_target(b"/" + b"a" * 8191, 8192)[1] is None


@pytest.mark.parametrize(
    ("query", "passed"),
    [
        (None, None),
        (b"", b""),
        (b"a=1&b=2", b"a=1&b=2"),
        (b"b=2&a=1&a=0", b"b=2&a=1&a=0"),
        (b"ticket=t", None),
        (b"a=1&ticket=t&b=%2F+x", b"a=1&b=%2F+x"),
        (b"%74icket=t&a", b"a"),
        (b"ticket", None),
        (b"access_token=vAu_x&a=", b"a="),
        (b"access_token=eyJ.own&a=", b"access_token=eyJ.own&a="),
        (b"access_token=&a", b"access_token=&a"),
        (b"access%5Ftoken=vAu_x", None),
        (f"device_id={DEVICE}".encode(), None),
        (f"device_id={DEVICE.upper()}&x".encode(), b"x"),
        (f"device_id={DEVICE.replace('-', '%2D')}&x".encode(), b"x"),
        (b"device_id=cam-1&x", b"device_id=cam-1&x"),
        (b"device_id=", b"device_id="),
        (b"device_id=all", b"device_id=all"),
        (b"device_id=" + DEVICE.replace("-", "").encode(), b"device_id=" + DEVICE.replace("-", "").encode()),
        (b"device_id={" + DEVICE.encode() + b"}", b"device_id={" + DEVICE.encode() + b"}"),
        (f"device_id=cam-1&device_id={DEVICE}".encode(), b"device_id=cam-1"),
        (b"xticket=1&ticket_=2&Ticket=3", b"xticket=1&ticket_=2&Ticket=3"),
        (b"&&a&&", b"&&a&&"),
        (b"a=1;ticket=2", b"a=1;ticket=2"),
    ],
)
def test_our_own_parameters_are_taken_out(query: bytes | None, passed: bytes | None) -> None:
    assert split_query(query)[0] == passed
    target = b"/x" if query is None else b"/x?" + query
    line = Exchange(head(b"GET", target), via()).request.head.split(b"\r\n")[0]
    assert line == b"GET /x" + (b"" if passed is None else b"?" + passed) + b" HTTP/1.1"


def test_what_was_ours_is_told() -> None:
    own = own_params(f"/x?device_id=cam-1&ticket=a%2Bb&device_id={DEVICE.upper()}".encode())
    assert own == (DEVICE, "a+b")
    assert own_params(b"/x") == (None, None)
    assert own_params(b"/x?device_id=cam-1") == (None, None)
    assert own_params(b"\xff?%zz") == (None, None)


@pytest.mark.parametrize(
    ("value", "selects"),
    [
        (DEVICE, True),
        (DEVICE.upper(), True),
        (DEVICE + "\n", False),
        (" " + DEVICE, False),
        ("urn:uuid:" + DEVICE, False),
        ("", False),
    ],
)
def test_only_a_uuid_selects(value: str, selects: bool) -> None:
    assert is_device_id(value.encode()) is selects


@given(st.lists(st.sampled_from([b"a=1", b"b=%20", b"ticket=1", b"device_id=cam", b"", b"access_token=vAu_2", b"c+d"])))
def test_the_rest_keeps_its_order(pairs: list[bytes]) -> None:
    kept = [pair for pair in pairs if not pair.startswith((b"ticket", b"access_token"))]
    passed, _ = split_query(b"&".join(pairs))
    if len(kept) == len(pairs):
        assert passed == b"&".join(pairs)
    else:
        assert passed == (b"&".join(kept) or None)
