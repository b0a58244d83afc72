"""The credential file: private, whole at any moment, and never two agents on it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tunnel.agent import credentials
from tunnel.agent.credentials import AgentBusyError, CredentialError, Credentials, DamagedError, fingerprint

PAIRING, OTHER, SESSION = "vAc_" + "1" * 32, "vAc_" + "2" * 32, "vAs_" + "3" * 32


def test_a_new_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "c.json"
    made = credentials.new_credentials()
    assert len(made.instance) == 32
    assert made != credentials.new_credentials()
    credentials.store(path, made)
    assert credentials.load(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    made = credentials.new_credentials()
    stored = made.admitted(token=PAIRING, session_token=SESSION, device_id="d", url="wss://h/tunnel/connect")
    credentials.store(path, stored)
    assert json.loads(path.read_bytes()) == {
        "instance": made.instance,
        "session_token": SESSION,
        "device_id": "d",
        "url": "wss://h/tunnel/connect",
        "redeemed": fingerprint(PAIRING),
    }
    assert credentials.load(path) == stored
    assert SESSION not in repr(stored)
    assert PAIRING not in path.read_text()


def test_a_crash_at_any_point_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.json"
    old = credentials.new_credentials()
    credentials.store(path, old)
    new = old.admitted(token=PAIRING, session_token=SESSION, device_id="d", url="u")
    real = {"fsync": os.fsync, "replace": Path.replace}
    for name, target in (("fsync", os), ("replace", Path)):

        def crash(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(target, name, crash)
        with pytest.raises(CredentialError, match="No space left"):
            credentials.store(path, new)
        assert credentials.load(path) == old
        assert [p.name for p in tmp_path.iterdir()] == ["c.json"], "a temporary file stayed behind"
        monkeypatch.setattr(target, name, real[name])
    credentials.store(path, new)
    assert credentials.load(path) == new


def test_the_file_is_forced_to_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("replace"), replace(self, to))[1])
    credentials.store(tmp_path / "c.json", Credentials("i"))
    assert order == ["fsync", "replace", "fsync"]  # the second one is the folder's


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"[" * 100_000, b'{"instance": 5}', b'{"session_token": "x"}', b"\xff", b"\0" * 512]
)
def test_a_damaged_file_is_set_aside_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        credentials.load(path)
    kept = credentials.set_aside(path)
    assert kept == tmp_path / "c.json.bad"
    assert kept.read_bytes() == content
    assert credentials.load(path) is None


def test_a_few_damaged_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for number in range(9):
        path.write_text(str(number))
        credentials.set_aside(path)
    kept = {bad.name: bad.read_text() for bad in tmp_path.iterdir()}
    assert kept == {"c.json.bad": "0", "c.json.bad2": "1", "c.json.bad3": "2", "c.json.bad4": "3", "c.json.bad5": "8"}
    assert credentials.set_aside(path) is None


def test_a_file_that_cannot_be_read_is_left_where_it_is(tmp_path: Path) -> None:
    """A folder, another user's file: nobody knows whether it is good."""
    (tmp_path / "c.json").mkdir()
    with pytest.raises(CredentialError, match="cannot be read") as caught:
        credentials.load(tmp_path / "c.json")
    assert not isinstance(caught.value, DamagedError)


def test_unknown_fields_of_a_newer_agent_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"instance": "i", "future": 1}')
    assert credentials.load(path) == Credentials("i")


def test_which_token_is_presented() -> None:
    fresh = Credentials("i")
    paired = fresh.admitted(token=PAIRING, session_token=SESSION, device_id="d", url="u")
    assert fresh.candidates("") == []
    assert fresh.candidates(PAIRING) == [PAIRING]
    assert paired.candidates("") == [SESSION]
    assert paired.candidates(PAIRING) == [SESSION, PAIRING]  # the same one as before: it is used up
    assert paired.candidates(OTHER) == [OTHER, SESSION]  # a new one: the owner pairs anew


def test_rotation_keeps_what_was_redeemed() -> None:
    paired = Credentials("i").admitted(token=PAIRING, session_token=SESSION, device_id="d", url="u")
    rotated = paired.admitted(token=SESSION, session_token="vAs_" + "4" * 32, device_id="d", url="u")
    assert rotated.session_token == "vAs_" + "4" * 32
    assert rotated.redeemed == fingerprint(PAIRING)
    assert paired.admitted(token=SESSION, session_token=None, device_id="", url="u") == paired


def test_one_agent_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    assert not credentials.in_use(path)
    with credentials.only_agent(path):
        assert credentials.in_use(path)
        with pytest.raises(AgentBusyError), credentials.only_agent(path):
            pass
    assert not credentials.in_use(path)
    with credentials.only_agent(path):
        pass


def test_state_file(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    assert credentials.read_state(path) is None
    credentials.write_state(path, {"phase": "connected"})
    assert credentials.read_state(path) == {"phase": "connected"}
    credentials.state_path(path).write_text("[1]")
    assert credentials.read_state(path) is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CredentialError):
        credentials.store(tmp_path / "file" / "c.json", Credentials("i"))
    with credentials.only_agent(tmp_path / "file" / "c.json") as locked:
        assert not locked
    assert not credentials.in_use(tmp_path / "file" / "c.json")


def test_where_no_lock_file_can_be_made_the_credential_file_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.json"
    credentials.store(path, Credentials("i"))
    real = Path.open

    def read_only(self: Path, mode: str = "r", *more: object, **named: object) -> object:
        if mode != "rb":
            raise OSError(30, "Read-only file system")
        return real(self, mode, *more, **named)  # type: ignore[call-overload]  # as it came

    monkeypatch.setattr(Path, "open", read_only)
    with credentials.only_agent(path) as locked:
        assert locked
        assert credentials.in_use(path)
        with pytest.raises(AgentBusyError), credentials.only_agent(path):
            pass
    assert not credentials.in_use(path)
