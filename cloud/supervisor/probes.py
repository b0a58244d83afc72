"""Short looks at the outside: does something answer, is a port free, does our parent still want us."""

import http.client
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

PROBE_SECONDS = 2.0


def http_status(port: int, path: str, headers: Mapping[str, str] | None = None) -> int:
    """The status of a GET on this machine, 0 when there is no answer."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    try:
        link.request("GET", path, headers=dict(headers or {}))
        return link.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        link.close()


def port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens there (what is left of closed connections does not count)."""
    for address in dict.fromkeys((host, "0.0.0.0")):  # noqa: S104 - tried, never listened on
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


class Parent:
    """``make`` (or whatever started us): gone, or told to stop without our being told.

    A terminal sends Ctrl-C to the whole group, but ``kill -INT <make>`` reaches make alone, which then waits for us
    for ever. Make restores the signal's default while it waits; on Linux its /proc entry shows that.
    """

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._caught = self._catches_interrupt()

    def wants_end(self) -> bool:
        """Whether to stop."""
        return os.getppid() != self._pid or (self._caught and not self._catches_interrupt())

    def _catches_interrupt(self) -> bool:
        try:
            if Path(f"/proc/{self._pid}/comm").read_text().strip() not in {"make", "gmake"}:
                return False
            mask = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{self._pid}/status").read_text(), re.MULTILINE)
        except OSError:
            return False
        return mask is not None and bool(int(mask.group(1), 16) & 1 << 1)  # SIGINT is signal 2: the second bit
