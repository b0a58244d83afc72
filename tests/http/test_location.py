"""Where a box may lead who asked: on our origin only to itself, whatever it writes and however browsers read it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from typing import Any
from urllib.parse import urljoin

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunnel.http.location import Shown, place

MOUNT = b"/d/0198c000-0000-7000-8000-000000000001"
HOME = b"/api/devices/0198c000-0000-7000-8000-000000000001/proxy"
HOSTS = (b"cloud:3800", b"127.0.0.1")
DEEP = Shown(MOUNT, b"", HOSTS, b"/a/b/c")
ROOT = Shown(MOUNT, b"", HOSTS, b"/")
FLAT = Shown(b"", HOME, HOSTS, b"/api/cameras/0/stream")
OTHER = b"0198c000-0000-7000-8000-000000000002"


@pytest.mark.parametrize(
    ("url", "placed"),
    [
        # what cannot leave passes byte for byte
        (b"x/y?q#f", b"x/y?q#f"),
        (b"./x", b"./x"),
        (b"?../x", b"?../x"),
        (b"#/../x", b"#/../x"),
        (b"", b""),
        (b"..x/...", b"..x/..."),
        # what climbs ends at the mount
        (b"../x?q", MOUNT + b"/a/x?q"),
        (b"..", MOUNT + b"/a/"),
        (b"../../../../api/auth/me", MOUNT + b"/api/auth/me"),
        (b"..\\..\\..\\x", MOUNT + b"/x"),
        (b"%2e%2E/.%2e/%2e./x", MOUNT + b"/x"),
        (b".\t./../../../x", MOUNT + b"/x"),
        (b"/../../api", MOUNT + b"/api"),
        (b"/x/../y/.", MOUNT + b"/y/"),
        (b"/x/..;/y", MOUNT + b"/y"),
        (MOUNT + b"/../" + OTHER + b"/x", MOUNT + b"/" + OTHER + b"/x"),
        (b"http://cloud:3800/../api", MOUNT + b"/api"),
        (b"http://cloud:3800" + MOUNT + b"/../../api", MOUNT + b"/api"),
        # other spellings of our own host, and of a path
        (b"\\api\\auth", MOUNT + b"/api\\auth"),
        (b"\\\\cloud:3800\\api", MOUNT + b"/\\cloud:3800\\api"),
        (b"///cloud:3800/api", MOUNT + b"/api"),
        (b"http:/api", MOUNT + b"/api"),
        (b"https:api", MOUNT + b"/a/b/api"),
        (b"http:javascript:x", MOUNT + b"/a/b/javascript:x"),
        (b"http:\\\\cloud:3800/api", MOUNT + b"/api"),
        (b"ht\ttp://cloud:3800/api", MOUNT + b"/api"),
        (b"http://a:b@cloud:3800/api", MOUNT + b"/api"),
        (b"http://cloud:03800/api", MOUNT + b"/api"),
        (b"http://clou%64:3800/api", MOUNT + b"/api"),
        (b"http://\xef\xbd\x83loud:3800/api", MOUNT + b"/api"),  # a full-width c
        (b"http://2130706433/api", MOUNT + b"/api"),
        (b"http://127.1/api", MOUNT + b"/api"),
        (b"http://0x7f.0.0.1/api", MOUNT + b"/api"),
        (b"http://127.0.0.1.:80/api", MOUNT + b"/api"),
        (b"http://127.0.0.1:/api", MOUNT + b"/api"),
        (b"http:///api", MOUNT + b"/api"),
        (b"///other/api", MOUNT + b"/other/api"),
        (b"http:/\\other/api", MOUNT + b"/other/api"),
        # elsewhere
        (b"http://other/../api", b"http://other/../api"),
        (b"http://10.0.0.1/api", b"http://10.0.0.1/api"),
        (b"//other/..", b"//other/.."),
        (b"https://cloud.:3800/api", b"https://cloud.:3800/api"),
        (b"http://cloud:3800@other/x", b"http://cloud:3800@other/x"),
        (b"rtsp://cloud:3800/../x", b"rtsp://cloud:3800/../x"),
    ],
)
def test_below_a_mount(url: bytes, placed: bytes) -> None:
    assert place(url, DEEP) == placed


@pytest.mark.parametrize(("url", "placed"), [(b"x", MOUNT + b"/x"), (b"../x", MOUNT + b"/x"), (b"?q", b"?q")])
def test_from_the_mount_itself(url: bytes, placed: bytes) -> None:
    """The client may have asked for it without the slash behind it, and would leave it by any relative reference."""
    assert place(url, ROOT) == placed


@pytest.mark.parametrize(
    ("url", "placed"),
    [
        (b"snapshot?a=1", b"snapshot?a=1"),
        (b"/api/cameras/1", b"/api/cameras/1"),
        (b"/api/inference/run", b"/api/inference/run"),
        (b"http://cloud:3800/ws/x", b"/ws/x"),
        (b"/api/cameras/../inference/x", b"/api/inference/x"),
        (b"/login", HOME + b"/login"),
        (b"/api/auth/logout-all", HOME + b"/api/auth/logout-all"),
        (b"../../auth/logout-all", HOME + b"/api/auth/logout-all"),
        (b"/api/camerasx", HOME + b"/api/camerasx"),
        (b"http://cloud:3800/api/devices", HOME + b"/api/devices"),
        (HOME + b"/x", HOME + b"/x"),
        (HOME + b"/../x", HOME + b"/api/devices/0198c000-0000-7000-8000-000000000001/x"),
        (b"/api/cameras/1?device_id=" + OTHER, HOME + b"/api/cameras/1?device_id=" + OTHER),
        (b"?device_id=" + OTHER, HOME + b"/api/cameras/0/stream?device_id=" + OTHER),
        (b"?q", b"?q"),
        (b"", b""),
        (b"/api/cameras/1?device_id=front", b"/api/cameras/1?device_id=front"),
        (b"http://other/api/auth", b"http://other/api/auth"),
    ],
)
def test_where_paths_pass_as_they_are(url: bytes, placed: bytes) -> None:
    """A box that answers there leads to what is shown of it there, or by its own proxy route."""
    assert place(url, FLAT) == placed


PIECES = [
    b"..", b".", b"%2e", b"%2E%2e", b".%2e", b"/", b"//", b"\\", b"\t", b"a", b"b/c", b"?q", b"#f", b":", b"@",
    b"http:", b"https:", b"HTTP://", b"//", b"cloud:3800", b"CLOUD:3800", b"cloud", b"other", b"127.0.0.1", b"127.1",
    b"clou%64:3800", b"user@", b":80", b"api", b"auth/me", b"d", MOUNT, HOME, b"api/cameras", b"/api/cameras/",
    b"ws", b"device_id=" + OTHER, b" ", b";", b"%2f", b"%5c", b"data:",
]  # fmt: skip
URLS = st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join)


def is_own(path: str, shown: Shown) -> bool:
    """Whether a path of our origin, as a client asks for it, is the box's."""
    prefix = (shown.mount or shown.home).decode()
    if path == prefix or path.startswith(prefix + "/"):
        return True
    return not shown.mount and (path == "/ws" or path.startswith(("/api/cameras", "/api/inference", "/ws/")))


@given(URLS, st.sampled_from([DEEP, ROOT, FLAT]))
@example(b"..\\../../api", DEEP)
@example(b"HTTP:///api", DEEP)
@settings(max_examples=500)
def test_nothing_leads_elsewhere_for_clients_that_read_as_the_standard_library(url: bytes, shown: Shown) -> None:
    base = "http://cloud:3800" + (shown.mount + shown.path).decode()
    end = urljoin(base, place(url, shown).decode())
    if end.startswith("http://cloud:3800/"):
        assert is_own(end.removeprefix("http://cloud:3800").partition("?")[0].partition("#")[0], shown)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_nothing_leads_elsewhere_for_browsers() -> None:
    """By the parser of WHATWG URLs that node has: whatever is said, our own origin ends where the box's paths do."""
    chance = random.Random(20_261_201)
    asked: list[dict[str, Any]] = []
    for _ in range(8_000):
        url = b"".join(chance.choices(PIECES, k=chance.randint(1, 9)))
        for shown in (DEEP, ROOT, FLAT):
            for origin in ("http://cloud:3800", "https://cloud:3800", "http://127.0.0.1"):
                # Also without the slash that the box saw, as who asked may have left it out.
                asked += [
                    {"url": place(url, shown).decode("latin-1"), "base": base, "said": url.decode("latin-1")}
                    for base in {origin + (shown.mount + shown.path).decode(), origin + shown.mount.decode()}
                    if shown is ROOT or base.endswith(shown.path.decode())
                ]
    program = """
        const asked = JSON.parse(require("fs").readFileSync(0));
        console.log(JSON.stringify(asked.map(({url, base}) => {
            try {
                const end = new URL(url, base);
                return end.origin === new URL(base).origin ? end.pathname : null;
            } catch { return null; }
        })));
    """
    done = subprocess.run(["node", "-e", program], input=json.dumps(asked), capture_output=True, text=True, check=True)
    ends = json.loads(done.stdout)
    assert sum(end is not None for end in ends) > len(ends) // 10
    for one, end in zip(asked, ends, strict=True):
        shown = FLAT if "/api/cameras/0/stream" in one["base"] else DEEP
        assert end is None or is_own(end, shown), (one, end)
