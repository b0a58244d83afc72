"""The owner's side of the guard (``guard.py``)."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_SCRIPT = Path(__file__).with_name("guard.py")


class Guard:
    """A context manager: programs entered here never outlive this process.

    ``held`` are open descriptors (locks) that the guard shall hold too, so that they are free only when it is done.
    """

    def __init__(self, held: Sequence[int] = ()) -> None:
        self._held = tuple(held)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            pass_fds=self._held,
            start_new_session=True,
            cwd="/",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it was killed: nothing is left to tell it
            self._process.wait(timeout=15)

    def add(self, group: int, stop_signal: int) -> None:
        """End this process group with that signal when we are gone."""
        self._tell(f"+ {group} {int(stop_signal)}\n")

    def remove(self, group: int) -> None:
        """It ended: its id may soon belong to somebody else."""
        self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            pass  # without its guard the owner still stops everything itself
