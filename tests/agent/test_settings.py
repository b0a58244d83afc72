"""Flag before environment before file; bad values in one line that quotes no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnel.agent.settings import default_credentials, load
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


def test_a_bad_token_is_not_quoted() -> None:
    with pytest.raises(SettingError) as caught:
        load({"pairing_token": "secret token"}, {}, None)
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        load({}, {}, tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="cannot be read"):
        load({}, {}, tmp_path / "binary")
