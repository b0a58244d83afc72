"""URLs, local addresses, proxies."""

from __future__ import annotations

import base64

import pytest

from tunnel.agent.addresses import AddressError, LocalAddress, choose_proxy, parse_local, parse_proxy, parse_url


@pytest.mark.parametrize(
    ("text", "url", "port"),
    [
        ("wss://cloud.example.com", "wss://cloud.example.com/tunnel/connect", 443),
        ("https://Cloud.Example.com/", "wss://cloud.example.com/tunnel/connect", 443),
        ("ws://127.0.0.1:3800", "ws://127.0.0.1:3800/tunnel/connect", 3800),
        ("http://localhost:3800/tunnel/connect", "ws://localhost:3800/tunnel/connect", 3800),
        ("wss://h/other/path", "wss://h/other/path", 443),
        ("wss://h/p?a=b&c=%2F", "wss://h/p?a=b&c=%2F", 443),
        ("ws://[::1]:3800", "ws://[::1]:3800/tunnel/connect", 3800),
        ("wss://h/ä b", "wss://h/%C3%A4%20b", 443),
        (" wss://münchen.example ", "wss://xn--mnchen-3ya.example/tunnel/connect", 443),
    ],
)
def test_urls(text: str, url: str, port: int) -> None:
    endpoint = parse_url(text)
    assert (endpoint.url, endpoint.port) == (url, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cloud.example.com",
        "ftp://h",
        "wss://",
        "wss://h:99999",
        "wss://h:x",
        "wss://u:p@h",
        "wss://a b",
        "wss://[::",
    ],
)
def test_bad_urls(text: str) -> None:
    with pytest.raises(AddressError):
        parse_url(text)


@pytest.mark.parametrize(
    "text", ["cloud.example.com", "//cloud.example.com/x", "wss:cloud.example.com", "ws:/cloud.example.com"]
)
def test_a_url_without_a_scheme_is_told_what_to_write(text: str) -> None:
    with pytest.raises(
        AddressError, match=r"write wss://cloud\.example\.com, or ws://cloud\.example\.com for a port without"
    ):
        parse_url(text)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(AddressError) as caught:
        parse_url("wss://user:hunter2@h")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", LocalAddress("127.0.0.1", 8080)),
        (":9000", LocalAddress("127.0.0.1", 9000)),
        ("localhost:1", LocalAddress("localhost", 1)),
        ("[::1]:80", LocalAddress("::1", 80)),
        ("192.168.1.5:65535", LocalAddress("192.168.1.5", 65535)),
    ],
)
def test_local(text: str, expected: LocalAddress) -> None:
    assert parse_local(text) == expected


@pytest.mark.parametrize("text", ["", "host", "host:0", "host:65536", "host:x", "h:1/path", "u@h:1", "http://h:1"])
def test_bad_local(text: str) -> None:
    with pytest.raises(AddressError):
        parse_local(text)


PROXY = "http://proxy.corp:3128"


@pytest.mark.parametrize(
    ("url", "environ", "used"),
    [
        ("wss://h", {}, False),
        ("wss://h", {"HTTPS_PROXY": PROXY}, True),
        ("wss://h", {"https_proxy": PROXY}, True),
        ("wss://h", {"HTTP_PROXY": PROXY}, False),
        ("wss://h", {"ALL_PROXY": PROXY}, True),
        ("ws://h", {"HTTP_PROXY": PROXY}, True),
        ("ws://h", {"HTTPS_PROXY": PROXY}, True),
        ("wss://h", {"HTTPS_PROXY": "", "https_proxy": ""}, False),
        ("wss://h", {"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, False),
        ("wss://a.example.com", {"HTTPS_PROXY": PROXY, "NO_PROXY": "example.com"}, False),
        ("wss://a.example.com", {"HTTPS_PROXY": PROXY, "no_proxy": "x, .example.com"}, False),
        ("wss://badexample.com", {"HTTPS_PROXY": PROXY, "NO_PROXY": "example.com"}, True),
        ("wss://h:444", {"HTTPS_PROXY": PROXY, "NO_PROXY": "h:443"}, True),
        ("wss://h:443", {"HTTPS_PROXY": PROXY, "NO_PROXY": "h:443"}, False),
        ("wss://10.1.2.3", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, False),
        ("wss://11.1.2.3", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, True),
        ("wss://[::1]:444", {"HTTPS_PROXY": PROXY, "NO_PROXY": "::1"}, False),
    ],
)
def test_which_proxy(url: str, environ: dict[str, str], used: bool) -> None:
    assert (choose_proxy(parse_url(url), environ) is not None) is used


def test_proxy_credentials() -> None:
    proxy = parse_proxy("http://us%40er:p%3Aw@proxy.corp")
    assert (proxy.host, proxy.port) == ("proxy.corp", 80)
    assert proxy.authorization == "Basic " + base64.b64encode(b"us@er:p:w").decode()
    assert "p:w" not in repr(proxy)
    assert parse_proxy("proxy.corp:3128").port == 3128


@pytest.mark.parametrize("text", ["socks5://h:1", "http://", "http://h:x"])
def test_bad_proxies(text: str) -> None:
    with pytest.raises(AddressError):
        parse_proxy(text)
