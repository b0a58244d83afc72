"""Which of PostgreSQL's programs a backup runs."""

from pathlib import Path

import pytest

from apps.system import backup


def test_a_program_that_does_not_answer_is_one_line(db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hung = tmp_path / "pg_dump"
    hung.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    hung.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(backup, "_ANSWER_SECONDS", 0.2, raising=False)
    with pytest.raises(backup.BackupError, match=f"^{hung} --version does not answer$"):
        backup._run("pg_dump", "--format=custom")
