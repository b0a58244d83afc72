"""compose.yaml against the Compose specification, the settings that exist, and the rules for containers."""

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tunnel.contract import BY_NAME, PREFIX, read_settings
from tunnel.daemon import node as daemon

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LONG_RUNNING = sorted(set(SERVICES) - {"migrate"})


def expand(value: str, environ: dict[str, str]) -> str:
    """Compose's interpolation, as far as the file uses it: ``${NAME:-default}`` and ``$$``."""
    filled = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environ.get(found[1]) or found[2], value)
    assert not re.search(r"(?<!\$)\$\{", filled), filled
    return filled.replace("$$", "$")


def environment_of(name: str, environ: dict[str, str]) -> dict[str, str]:
    """What a service's container gets: the file `.env` where it is read, below what the service sets."""
    service = SERVICES[name]
    below = dict(environ) if service.get("env_file") else {}
    return below | {key: expand(str(value), environ) for key, value in service.get("environment", {}).items()}


def example() -> dict[str, str]:
    path = ROOT / ".env.example"
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_it_is_valid_by_the_specification() -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(COMPOSE)


def test_the_services_are_those_of_the_product() -> None:
    assert set(SERVICES) == {"migrate", "api", "tunnel", "worker", "agent", "nginx", "postgres", "valkey"}


def test_every_setting_that_it_names_exists() -> None:
    named = set(re.findall(r"\bVISIONA_(\w+)", TEXT))
    assert named
    assert named <= set(BY_NAME)


@pytest.mark.parametrize(("service", "alias"), [("api", "api-server"), ("tunnel", "remote-proxy")])
def test_the_prototypes_names_are_kept(service: str, alias: str) -> None:
    assert alias in SERVICES[service]["networks"]["default"]["aliases"]


def test_the_daemon_gets_what_it_reads_and_one_secret() -> None:
    """It faces the internet: whoever took it over would hold every secret of the file `.env`."""
    read = set(re.findall(r'values\["(\w+)"\]', (ROOT / "tunnel" / "daemon" / "config.py").read_text()))
    got = {name.removeprefix(PREFIX) for name in SERVICES["tunnel"]["environment"]}
    assert "env_file" not in SERVICES["tunnel"]
    assert got == read | {"ENV_STRICT"}
    secrets = {name for name, setting in BY_NAME.items() if setting.kind == "secrets" or "PASSWORD" in name}
    secrets |= {name for name in BY_NAME if name.endswith(("_SECRET", "_KEY", "_KEY_ID", "_TOKEN", "REDIS_URL"))}
    assert got & secrets == {"INTERNAL_SECRET"}


def test_only_the_public_ports_are_published_and_on_loopback() -> None:
    published = {name: [expand(port, {}) for port in service.get("ports", [])] for name, service in SERVICES.items()}
    assert {name: ports for name, ports in published.items() if ports} == {
        "api": ["127.0.0.1:3721:3721"],
        "tunnel": ["127.0.0.1:3800:3800"],
        "nginx": ["127.0.0.1:8080:8080"],
    }
    assert all("network_mode" not in service for service in SERVICES.values())


def test_ports_follow_the_settings_outside_and_stay_inside() -> None:
    environ = {"VISIONA_API_PORT": "4000", "VISIONA_TUNNEL_PORT": "4001", "VISIONA_BIND_HOST": "0.0.0.0"}
    assert expand(SERVICES["api"]["ports"][0], environ) == "0.0.0.0:4000:3721"
    assert expand(SERVICES["tunnel"]["ports"][0], environ) == "0.0.0.0:4001:3800"
    assert environment_of("api", environ)["VISIONA_API_PORT"] == "3721"
    assert environment_of("tunnel", environ)["VISIONA_TUNNEL_PORT"] == "3800"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_nobody_is_root_and_nothing_is_writable(name: str) -> None:
    service = SERVICES[name]
    user, group = service["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in service["tmpfs"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_every_long_running_service_has_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_one_origin_is_asked_for_and_the_default_stays_as_it_was() -> None:
    """`docker compose up` starts no proxy; where one is asked for, it reads the shipped files, writes to /tmp alone."""
    nginx = SERVICES["nginx"]
    assert nginx["profiles"] == ["proxy"]
    assert {name for name, service in SERVICES.items() if service.get("profiles")} == {"nginx", "agent"}
    (volume,) = nginx["volumes"]
    source, target, mode = volume.split(":")
    assert mode == "ro"
    config = nginx["entrypoint"][nginx["entrypoint"].index("-c") + 1]
    assert config.startswith(f"{target}/")
    assert (ROOT / source / config.removeprefix(f"{target}/")).is_file()
    assert nginx["entrypoint"][nginx["entrypoint"].index("-p") + 1].rstrip("/") in nginx["tmpfs"]
    upstreams = (ROOT / source / "upstreams.conf").read_text()
    assert set(re.findall(r"server (\w+):(\d+)[; ]", upstreams)) == {("api", "3721"), ("tunnel", "3800")}
    assert "listen 8080" in (ROOT / source / "listen.conf").read_text()


def test_the_schema_comes_first() -> None:
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["command"][:3] == ["python", "manage.py", "migrate"]
    for name in ("api", "worker"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert SERVICES[name]["image"] == SERVICES["migrate"]["image"]


def test_the_daemon_may_end_in_order() -> None:
    beside = daemon._GOODBYE_SECONDS + daemon._CLOSE_SECONDS + daemon._FLUSH_SECONDS
    grace = float(SERVICES["tunnel"]["stop_grace_period"].removesuffix("s"))
    lameduck = float(SERVICES["tunnel"]["environment"]["VISIONA_LAMEDUCK_SECONDS"])
    assert grace > lameduck + float(BY_NAME["TUNNEL_DRAIN_SECONDS"].default) + beside


def test_what_must_survive_lies_on_named_volumes() -> None:
    mounted = {name: service.get("volumes", []) for name, service in SERVICES.items()}
    assert mounted["postgres"] == ["postgres:/var/lib/postgresql"]
    assert mounted["valkey"] == ["valkey:/data"]
    assert mounted["api"] == mounted["worker"] == ["storage:/var/lib/visiona/storage"]
    used = {volume.split(":")[0] for volumes in mounted.values() for volume in volumes if volume[0] != "."}
    assert used == set(COMPOSE["volumes"])
    assert not any("external" in (volume or {}) for volume in COMPOSE["volumes"].values())


@pytest.mark.parametrize("name", ["api", "tunnel", "worker", "agent", "migrate"])
def test_images_are_built_from_dockerfiles_that_exist(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("name", ["api", "worker", "migrate"])
def test_the_example_settings_start_the_control_plane(name: str) -> None:
    """`.env.example` unchanged: the container's settings are accepted, strictly, and lead to the other containers."""
    environ = environment_of(name, example()) | {"VISIONA_ENV_STRICT": "true"}
    settings, warnings = read_settings({k: v for k, v in environ.items() if k.startswith(PREFIX)}, "api")
    assert warnings == []
    assert (settings["ENV"], settings["BIND_HOST"]) == ("development", "0.0.0.0")
    assert (settings["DB_HOST"], settings["DB_USER"], settings["DB_NAME"]) == ("postgres", "visiona", "visiona")
    assert settings["REDIS_URL"] == "redis://valkey:6379/0"
    assert settings["PROXY_INTERNAL_URL"] == "http://tunnel:3801"


def test_the_example_settings_start_the_daemon() -> None:
    environ = environment_of("tunnel", example()) | {"VISIONA_ENV_STRICT": "true"}
    settings, _ = read_settings({k: v for k, v in environ.items() if k.startswith(PREFIX)}, "tunnel")
    assert (settings["BIND_HOST"], settings["INTERNAL_BIND_HOST"]) == ("0.0.0.0", "0.0.0.0")
    assert (settings["API_INTERNAL_URL"], settings["NODE_URL"]) == ("http://api:3721", "http://tunnel:3801")


def test_both_sides_of_the_database_agree() -> None:
    for environ in ({}, {"VISIONA_DB_USER": "u", "VISIONA_DB_PASSWORD": "p", "VISIONA_DB_NAME": "n"}):
        api, server = environment_of("api", dict(environ)), environment_of("postgres", dict(environ))
        for ours, theirs in (("USER", "USER"), ("PASSWORD", "PASSWORD"), ("NAME", "DB")):
            assert api[f"VISIONA_DB_{ours}"] == server[f"POSTGRES_{theirs}"]


def _has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
def test_docker_itself_reads_it() -> None:
    done = subprocess.run(["docker", "compose", "config", "--quiet"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
