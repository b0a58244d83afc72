"""The fast lane over the daemon's real public port: who may, what passes, what is kept and who ends it."""

from __future__ import annotations




from tests.runtime.fastworld import DEVICE, Handler, Visitor, Wire, box, fast_world, ok


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


def once(data: bytes) -> Handler:
    """Reads one head, says this, and ends the stream."""

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(data)

    return answer


async def test_a_box_that_speaks_no_http() -> None:
    async with fast_world() as w:
        await box(w, once(b"SSH-2.0-OpenSSH\r\n"))
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code) == (502, "AGENT_BAD_RESPONSE")


async def test_a_stream_that_ends_while_it_idles_is_not_used_again() -> None:
    async with fast_world() as w:
        await box(w, once(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
        async with Visitor(w) as visitor:
            for _ in range(5):
                got = await visitor.ask(f"GET /d/{DEVICE}/x")
                assert (got.status, got.body) == (200, b"ok")
