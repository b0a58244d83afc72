"""Memory settings of a process that lives long."""

from __future__ import annotations

import platform

from tunnel.net.memory import keep_memory, return_memory


def test_what_the_c_library_cannot_do_is_told_and_no_fault() -> None:
    glibc = platform.libc_ver()[0] == "glibc"
    for setting in (keep_memory, return_memory):
        assert setting() is glibc
        assert setting() is glibc, "twice is as good as once"
