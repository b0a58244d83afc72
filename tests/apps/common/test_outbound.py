"""Calls to servers that others name: where they may go, and how long and how much they may take."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from apps.common import outbound
from apps.common.outbound import Policy, Refused, Unanswered, check_url, post
from tests.apps.webhooks.receiver import receiving, scripted

PUBLIC, PRIVATE = Policy(), Policy(private=True, plain=True)


def call(url, policy=PRIVATE, **how):
    how = {"headers": {"X-A": "b"}, "connect_seconds": 10, "total_seconds": 20, **how}
    return post(url, b"{}", policy=policy, **how)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1",
        "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "3fff::1",
        "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "::127.0.0.1", "5f00::1", "4000::1",
    ],
)  # fmt: skip
def test_addresses_that_are_nobodys_business(address):
    assert not PUBLIC.allows(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2a00::1", "::ffff:8.8.8.8",
                "64:ff9b::808:808"],
)  # fmt: skip
def test_addresses_of_the_public(address):
    assert PUBLIC.allows(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::1", "fd00::1", "::ffff:127.0.0.1", "8.8.8.8"])
def test_private_addresses_when_they_are_allowed(address):
    assert PRIVATE.allows(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "fe80::1", "ff02::1",
                "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254"],
)  # fmt: skip
def test_where_nothing_goes_even_then(address):
    assert not PRIVATE.allows(ipaddress.ip_address(address))


def test_one_network_alone():
    policy = Policy.of(private=False, networks=["10.1.0.0/16"], plain=False)
    assert policy.allows(ipaddress.ip_address("10.1.2.3"))
    assert policy.allows(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert not policy.allows(ipaddress.ip_address("10.2.0.1"))


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "/hook", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "http://example.com/",
        "https://", "https:///hook", "https://user@example.com/", "https://user:pw@example.com/", "https://@example.com/",
        "https://example.com/#x", "https://example.com/#", "https://example.com:22/", "https://example.com:0/",
        "https://example.com:25/", "https://example.com:99999/", "https://example.com:x/", "https://127.0.0.1/",
        "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[fe80::1%25eth0]/", "https://localhost/",
        "https://LOCALHOST/", "https://localhost./", "https://a.localhost/", "https://printer.local/",
        "https://metadata.google.internal/", "https://127.1/", "https://2130706433/", "https://0x7f.0.0.1/",
        "https://0x7f000001/", "https://017700000001/", "https://exa mple.com/", "https://exämple.com/",
        "https://example.com/\r\nX: y", "https://example.com\\@127.0.0.1/", "https://example..com/", "https://-a.com/",
        "https://" + "a" * 64 + ".com/", "https://example.com/\0", "https://[::1/", "https://169.254.169.254/latest",
    ],
)  # fmt: skip
def test_urls_that_nobody_may_name(url):
    with pytest.raises(Refused):
        check_url(url, PUBLIC)


@pytest.mark.parametrize(
    "url", ["https://example.com", "https://example.com/a?b=c", "https://example.com:8443/", "https://EXAMPLE.com/",
            "https://xn--exmple-cua.com/", "https://1.1.1.1/", "https://[2606:4700::1111]/", "https://example.com./"],
)  # fmt: skip
def test_urls_that_one_may_name(url):
    check_url(url, PUBLIC)


def test_a_call_and_its_answer():
    with receiving() as receiver:
        receiver.answer, receiver.body = 201, b"hello"
        assert call(receiver.url + "?q=1") == outbound.Reply(201)
        assert call(receiver.url, max_body=5) == outbound.Reply(201, b"hello")
        path, headers, body = receiver.got[0]
    assert (path, body) == ("/hook?q=1", b"{}")
    assert (headers["Host"], headers["X-A"], headers["Connection"]) == (f"127.0.0.1:{receiver.port}", "b", "close")


def test_a_private_address_is_not_called():
    with receiving() as receiver:
        for policy in (PUBLIC, Policy(plain=True), Policy.of(private=False, networks=["10.0.0.0/8"], plain=True)):
            with pytest.raises(Refused):
                call(receiver.url, policy)
        assert receiver.got == []
        call(receiver.url, Policy.of(private=False, networks=["127.0.0.1"], plain=False))
        assert len(receiver.got) == 1


class Names:
    """A name service that answers what it is told, another thing each time."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host, port, *rest, **more):
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]


def name(monkeypatch, *answers):
    names = Names(*answers)
    monkeypatch.setattr(outbound.socket, "getaddrinfo", names)
    return names


def test_a_name_that_leads_to_a_private_address(monkeypatch):
    with receiving() as receiver:
        name(monkeypatch, ["127.0.0.1"])
        with pytest.raises(Refused):
            call(f"http://hook.example.com:{receiver.port}/", Policy(plain=True))
        assert receiver.got == []


def test_a_name_of_which_one_address_is_private(monkeypatch):
    name(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(Refused):
        call("https://hook.example.com/", PUBLIC)


def test_a_name_that_changes_its_mind_is_asked_once(monkeypatch):
    """The check and the connection stand on one answer: the second, a private one, is never asked for."""
    names = name(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    reached = []

    def connect(address, timeout):
        reached.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(outbound.socket, "create_connection", connect)
    with receiving() as receiver:
        with pytest.raises(Unanswered):
            call(f"http://hook.example.com:{receiver.port}/", Policy(plain=True))
        assert receiver.got == []
    assert reached == [("8.8.8.8", receiver.port)]
    assert names.asked == 1


def test_plain_http_in_production_is_for_own_networks_alone(monkeypatch):
    name(monkeypatch, ["8.8.8.8"])
    with pytest.raises(Refused):
        call("http://hook.example.com/", Policy.of(private=True, networks=[], plain=False))


def test_a_redirect_is_an_answer_like_any_other():
    with receiving() as inner, receiving() as outer:
        outer.answer, outer.headers = 302, {"Location": inner.url}
        assert call(outer.url).status == 302
        assert inner.got == []


def test_nobody_listens(free_port):
    with pytest.raises(Unanswered, match="refused"):
        call(f"http://127.0.0.1:{free_port()}/")


def test_a_name_that_is_none(monkeypatch):
    def fail(*_args):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(outbound.socket, "getaddrinfo", fail)
    with pytest.raises(Unanswered, match="resolved"):
        call("http://nowhere.example.com/")


def test_a_name_service_that_hangs(monkeypatch):
    let_go = threading.Event()
    monkeypatch.setattr(outbound.socket, "getaddrinfo", lambda *_args: let_go.wait(60))
    try:
        with pytest.raises(Unanswered, match="in time"):
            call("http://slow.example.com/", connect_seconds=0.1)
    finally:
        let_go.set()


@pytest.mark.parametrize(
    "pieces",
    [(), (b"HTTP/1.1 200 OK\r\n",), (b"HTTP/1.1 100 Continue\r\n\r\n",)],
)
def test_one_that_never_answers(pieces):
    with scripted(*pieces, close=False, then_wait=True) as port, pytest.raises(Unanswered, match="timed out"):
        call(f"http://127.0.0.1:{port}/", total_seconds=0.3)


def test_one_that_answers_a_byte_at_a_time_has_one_deadline():
    began = time.monotonic()
    with scripted(b"HTTP/1.1 200 OK\r\nX-A: ", *[b"x"] * 100_000) as port, pytest.raises(Unanswered, match="timed out"):
        call(f"http://127.0.0.1:{port}/", total_seconds=0.5)
    assert time.monotonic() - began < 20


def test_one_whose_head_never_ends():
    with (
        scripted(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: " + b"x" * 70_000, close=False) as port,
        pytest.raises(Unanswered),
    ):
        call(f"http://127.0.0.1:{port}/")


def test_one_whose_body_is_larger_than_asked_for():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    with scripted(head + b"x" * 1_000_000) as port, pytest.raises(Unanswered, match="more than"):
        call(f"http://127.0.0.1:{port}/", max_body=100)
    with scripted(head + b"x" * 1_000_000) as port:
        assert call(f"http://127.0.0.1:{port}/") == outbound.Reply(200)


def test_a_body_cut_short():
    with (
        scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc") as port,
        pytest.raises(Unanswered, match="cut short"),
    ):
        call(f"http://127.0.0.1:{port}/", max_body=100)


@pytest.mark.parametrize(
    "said,why",
    [(b"", "without an answer"), (b"SSH-2.0-OpenSSH\r\n", "HTTP"), (b"HTTP/1.1 abc\r\n\r\n", "HTTP")],
)
def test_one_that_speaks_something_else(said, why):
    with scripted(said) as port, pytest.raises(Unanswered, match=why):
        call(f"http://127.0.0.1:{port}/")


# --- TLS --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for hook.example.com, signed by itself: the path of the file with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hook.example.com")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hook.example.com")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def serving(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with receiving(context) as receiver:
        yield receiver


def test_a_certificate_that_nobody_vouches_for(serving, monkeypatch):
    name(monkeypatch, ["127.0.0.1"])
    with pytest.raises(Unanswered, match="not trusted"):
        call(f"https://hook.example.com:{serving.port}/")
    assert serving.got == []


def trusting(certificate, monkeypatch):
    context = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr(outbound, "_tls", lambda: context)


def test_the_name_is_what_the_certificate_is_checked_for(serving, certificate, monkeypatch):
    trusting(certificate, monkeypatch)
    name(monkeypatch, ["127.0.0.1"])
    assert call(f"https://hook.example.com:{serving.port}/").status == 200
    assert serving.got[0][1]["Host"] == f"hook.example.com:{serving.port}"
    with pytest.raises(Unanswered, match="not trusted"):
        call(f"https://other.example.com:{serving.port}/")
    with pytest.raises(Unanswered, match="not trusted"):
        call(f"https://127.0.0.1:{serving.port}/")


def test_no_tls_behind_https():
    with receiving() as receiver, pytest.raises(Unanswered, match=r"TLS|closed|reset|timed out"):
        call(f"https://127.0.0.1:{receiver.port}/")


@pytest.mark.parametrize("max_body", [0, 100])
def test_a_server_that_would_speak_another_protocol(max_body):
    head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    with scripted(head) as port, pytest.raises(Unanswered, match="did not answer in HTTP"):
        call(f"http://127.0.0.1:{port}/", max_body=max_body)
