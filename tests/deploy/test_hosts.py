"""Which host names the API answers to in production: the public one, and that by which the daemons call it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from django.http.request import split_domain_port, validate_host

from tunnel.daemon.control.http_client import Origin

ROOT = Path(__file__).resolve().parents[2]


def hosts(**settings: str) -> list[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
    ours = {
        "ENV": "production",
        "SECRET_KEY": "k" * 40,
        "INTERNAL_SECRET": "i" * 40,
        "STORAGE_SIGNING_SECRET": "s" * 40,
        "DB_HOST": "db",
        "DB_USER": "u",
        "DB_NAME": "n",
        "REDIS_URL": "redis://redis:6379/0",
        "PUBLIC_URL": "https://visiona.example",
        "TUNNEL_PUBLIC_URL": "https://tunnel.visiona.example",
        **settings,
    }
    code = "import json; from cloud import settings; print(json.dumps(settings.ALLOWED_HOSTS))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=plain | {f"VISIONA_{name}": value for name, value in ours.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("allowed", ["", "visiona.example"])
def test_the_name_by_which_the_daemons_call_is_served(allowed: str) -> None:
    found = hosts(ALLOWED_HOSTS=allowed, API_INTERNAL_URL="http://api:3721")
    assert {"visiona.example", "api", "localhost"} <= set(found)
    assert "*" not in found


@pytest.mark.parametrize(
    "url", ["http://[2001:db8::1]:3721", "http://[2001:DB8::1]", "http://API:3721", "http://10.0.0.1"]
)
def test_what_the_daemon_sends_as_host_is_served(url: str) -> None:
    """An IPv6 address too: without its brackets in the list, every heartbeat was 400."""
    domain, _ = split_domain_port(Origin.of(url).authority)
    assert domain
    assert validate_host(domain, hosts(API_INTERNAL_URL=url, ALLOWED_HOSTS="visiona.example"))


def test_a_public_url_by_address_is_served() -> None:
    assert validate_host("[2001:db8::1]", hosts(PUBLIC_URL="https://[2001:db8::1]"))


def test_a_name_that_nobody_named_is_not() -> None:
    assert "api" not in hosts(API_INTERNAL_URL="http://localhost:3721")


def own_addresses() -> list[str]:
    """This machine's, as they stand in a URL."""
    found = [each for addresses in psutil.net_if_addrs().values() for each in addresses]
    plain = [each.address for each in found if each.family == socket.AF_INET]
    return plain + [f"[{each.address.partition('%')[0]}]" for each in found if each.family == socket.AF_INET6]


def test_development_serves_the_hosts_of_this_machine_alone() -> None:
    """A name that somebody lets point here (DNS rebinding) would make a page of theirs one of our origin."""
    served = hosts(
        ENV="development", ALLOWED_HOSTS="my.test", BIND_HOST="192.0.2.7", API_INTERNAL_URL="http://api:3721"
    )
    mine = ["localhost", "box.localhost", "my.test", "192.0.2.7", "api", "visiona.example", socket.gethostname()]
    for host in [*mine, *own_addresses()]:
        assert validate_host(host.lower(), served), host
    for host in ("attacker.example", "localhost.attacker.example", "192.0.2.8", "testserver"):
        assert not validate_host(host, served), host
