"""Flag before environment before file; bad values in one line that quotes no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnel.agent.settings import default_credentials, load, read_pairing_token
from tunnel.contract import SettingError

TOKEN = "vAc_" + "1" * 32


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "agent.env"
    file.write_text(
        f"VISIONA_AGENT_URL=ws://file:1\nAGENT_LOCAL=127.0.0.1:1\nAGENT_PAIRING_TOKEN='{TOKEN}'\n# a note\n"
        "export AGENT_SERIAL=from-file\n"
    )
    environ = {"VISIONA_AGENT_URL": "ws://environment:2", "VISIONA_AGENT_LOCAL": "127.0.0.1:2"}
    told, warnings = load({"url": "ws://flag:3", "local": None}, environ, file)
    assert warnings == []
    assert told.endpoint is not None
    assert told.endpoint.host == "flag"
    assert told.local.port == 2
    assert told.pairing_token == TOKEN
    assert told.serial == "from-file"
    assert TOKEN not in repr(told)


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("AGENT_URL=ws://file:1")
    told, _ = load({}, {"VISIONA_AGENT_CONFIG": str(tmp_path / "f")}, None)
    assert told.endpoint is not None
    assert told.endpoint.host == "file"


def test_defaults() -> None:
    told, _ = load({}, {"HOME": "/home/x"}, None)
    assert told.endpoint is None
    assert str(told.local) == "127.0.0.1:8080"
    assert told.credentials == Path("/home/x/.local/state/visiona-agent/credentials.json")
    assert told.yamux_role == "server"


def test_our_yamux_role_is_the_opposite_of_the_daemons() -> None:
    assert load({"yamux_role": "server"}, {}, None)[0].yamux_role == "client"
    assert load({}, {"VISIONA_YAMUX_ROLE": "server"}, None)[0].yamux_role == "client"


def test_where_the_credentials_are() -> None:
    assert default_credentials({"STATE_DIRECTORY": "/s/a:/s/b"}) == Path("/s/a/credentials.json")
    assert default_credentials({"XDG_STATE_HOME": "/x"}) == Path("/x/visiona-agent/credentials.json")


def test_an_unknown_name_is_a_warning() -> None:
    _, warnings = load({}, {"VISIONA_AGENT_URI": "ws://h"}, None)
    assert len(warnings) == 1
    assert "VISIONA_AGENT_URL" in warnings[0]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"url": "cloud.example.com"}, "AGENT_URL"),
        ({"url": "ftp://h"}, "AGENT_URL"),
        ({"local": "nonsense"}, "AGENT_LOCAL"),
        ({"serial": "a\r\nX-Evil: 1"}, "AGENT_SERIAL"),
        ({"chip": "x" * 129}, "AGENT_CHIP"),
        ({"firmware": "é"}, "AGENT_FIRMWARE"),
        ({"ca_file": "/does/not/exist"}, "AGENT_CA_FILE"),
        ({"yamux_role": "both"}, "YAMUX_ROLE"),
        ({"log_level": "loud"}, "LOG_LEVEL"),
    ],
)
def test_bad_values_name_their_setting(flags: dict[str, str | None], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        load(flags, {}, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secret token", "32 digits"),
        (TOKEN[:-1], "35 characters"),
        ("vAu_" + "5" * 32, "login token"),
        ("vAc_" + "é" * 32, "32 digits"),
    ],
)
def test_a_bad_token_is_told_and_not_quoted_and_is_no_token(text: str, words: str) -> None:
    """A warning, not an end: a box that is paired already goes on without it."""
    told, warnings = load({"pairing_token": text}, {}, None)
    assert told.pairing_token == ""
    assert told.token_problem == warnings[0]
    assert words in warnings[0]
    assert "AGENT_PAIRING_TOKEN" in warnings[0]
    assert text.rpartition("_")[2][:6] not in warnings[0]


@pytest.mark.parametrize(
    "text", [f'"{TOKEN}"', f"'{TOKEN}'", f" {TOKEN}\n", f"\u201c{TOKEN}\u201d", f"<{TOKEN}>", f"`{TOKEN}`"]
)
def test_a_token_in_quotes_is_taken_without_them(text: str) -> None:
    assert load({"pairing_token": text}, {}, None)[0].pairing_token == TOKEN
    assert load({}, {"VISIONA_AGENT_PAIRING_TOKEN": text}, None)[0].pairing_token == TOKEN


def test_what_docker_leaves_in_quotes() -> None:
    """`docker run --env-file` keeps the quotes that a shell would take away."""
    environ = {
        "VISIONA_AGENT_URL": '"wss://cloud.example.com"',
        "VISIONA_AGENT_LOCAL": "'127.0.0.1:81'",
        "VISIONA_AGENT_SERIAL": '"SN-1"',
        "VISIONA_AGENT_CREDENTIALS": '"/state/c.json"',
        "VISIONA_LOG_LEVEL": '"debug"',
    }
    told, warnings = load({}, environ, None)
    assert warnings == []
    assert told.endpoint is not None
    assert told.endpoint.url == "wss://cloud.example.com/tunnel/connect"
    assert (str(told.local), told.serial, str(told.credentials)) == ("127.0.0.1:81", "SN-1", "/state/c.json")


def test_where_a_new_token_may_turn_up(tmp_path: Path) -> None:
    file = tmp_path / "agent.env"
    file.write_text(f'AGENT_PAIRING_TOKEN="{TOKEN}"')
    assert load({}, {}, file)[0].token_file == file
    assert load({"pairing_token": TOKEN}, {}, file)[0].token_file is None
    assert load({}, {"VISIONA_AGENT_PAIRING_TOKEN": TOKEN}, file)[0].token_file is None
    assert read_pairing_token(file) == TOKEN
    file.write_text("AGENT_PAIRING_TOKEN=half")
    assert read_pairing_token(file) == ""
    file.unlink()
    assert read_pairing_token(file) == ""


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        load({}, {}, tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="cannot be read"):
        load({}, {}, tmp_path / "binary")
