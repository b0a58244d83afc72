"""The fast lane over the daemon's real public port: who may, what passes, what is kept and who ends it."""

from __future__ import annotations

import pytest
import trio

from tests.runtime.fastworld import DEVICE, Visitor, box, fast_world, ok


async def test_a_get_goes_through_and_the_connection_is_kept() -> None:
    async with fast_world() as w:
        await box(w, ok(b"hello"))
        async with Visitor(w) as visitor:
            for number in range(3):
                got = await visitor.ask(f"GET /d/{DEVICE}/x?n={number}")
                assert (got.status, got.body) == (200, b"hello")
        assert len(w.control.authorizations) == 1
        line = w.logged("forward")[0]
        assert (line["outcome"], line["status"], line["bytes_down"]) == ("ok", 200, 5)
