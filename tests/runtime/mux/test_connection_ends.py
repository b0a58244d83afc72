"""How a connection stays alive and how it ends: silence, stalls, violations, closes, cancellation."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.protocol.lab import FIN, RST, SYN, decode, goaway, window
from tests.runtime.mux.mux_pipes import against_raw, connected, transport_pair, wait_idle
from tunnel.mux.connection import Connection
from tunnel.mux.errors import OpenTimeout, SessionEnded
from tunnel.mux.transport import TransportProtocolError
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind


async def test_an_idle_session_pings_and_lives(autojump_clock: MockClock) -> None:
    async with connected() as (client, server):
        assert client.rtt is None
        await trio.sleep(14)
        assert client.statistics().frames_out == 0
        await trio.sleep(4 * 3600)
        assert client.end_reason is None
        assert server.end_reason is None
        assert client.rtt is not None
        assert client.statistics().frames_out < 4 * 3600 / 15 * 2 + 10


async def test_a_network_that_dies_silently_is_noticed_within_40_seconds(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        peer.peer.cut = True
        begun = trio.current_time()
        stream = await connection.open_stream(wait_ack=False)
        with pytest.raises((SessionEnded, OpenTimeout)):
            await stream.receive_some()
        await wait_idle(connection)
        await trio.sleep_until(begun + 41.5)
        assert connection.end_reason is not None
        assert connection.end_reason.close_code == 4408


async def test_a_peer_that_does_not_read_ends_the_session(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        peer.capacity = 100

        async def chatter() -> None:
            while not peer.ended:
                await trio.sleep(1)
                with trio.move_on_after(0.1):
                    await peer.send_all(window(1, n=1))

        nursery.start_soon(chatter)
        stream = await connection.open_stream(wait_ack=False)
        with pytest.raises(SessionEnded, match="no progress in writing"):
            await stream.send_all(bytes(1024 * 1024))
        await trio.sleep(2)
        assert peer.close_code == 4408


async def test_the_end_of_the_transport_is_never_the_end_of_a_stream() -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        stream = await connection.open_stream(wait_ack=False)
        peer.peer.end(1001, "shutdown")
        with pytest.raises(SessionEnded):
            await stream.receive_some()
        with pytest.raises(SessionEnded):
            await connection.open_stream()
        assert connection.end_reason is not None
        assert connection.end_reason.remote
        assert connection.end_reason.close_code == 1001
        assert "shutdown" in connection.end_reason.text


async def test_a_broken_transport_wakes_everyone() -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        sending = await connection.open_stream(wait_ack=False)

        async def sender() -> None:
            with pytest.raises(SessionEnded):
                await sending.send_all(bytes(1024 * 1024))

        async def opener() -> None:
            with pytest.raises(SessionEnded):
                await connection.open_stream()

        async def acceptor() -> None:
            with pytest.raises(trio.EndOfChannel):
                await connection.accept_stream()

        for task in (sender, opener, acceptor):
            nursery.start_soon(task)
        await wait_all_tasks_blocked()
        peer.peer.break_()
        await wait_all_tasks_blocked()
        assert connection.end_reason is not None
        assert connection.end_reason.close_code == 1006


@pytest.mark.parametrize(
    ("wire", "code", "kind"),
    [
        (b"\x01" + bytes(11), 1002, EndKind.PROTOCOL),
        (window(1, SYN), 1002, EndKind.PROTOCOL),  # our own parity
        (b"".join(window(2 * n, RST) for n in range(1, 1200)), 4429, EndKind.ABUSE),
    ],
)
async def test_a_violation_is_answered_with_goaway_and_a_close_code(wire: bytes, code: int, kind: EndKind) -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        await peer.send_all(wire)
        await wait_all_tasks_blocked()
        assert decode(bytes(peer.arrived))[-1][:4] == (3, 0, 0, 1)
        assert peer.close_code == code
        assert connection.end_reason is not None
        assert (connection.end_reason.kind, connection.end_reason.remote) == (kind, False)


async def test_a_goaway_with_an_error_ends_everything() -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        stream = await connection.open_stream(wait_ack=False)
        await peer.send_all(goaway(2))
        with pytest.raises(SessionEnded, match=r"GoAway\(2\)"):
            await stream.receive_some()


async def test_aclose_says_goaway_and_closes_with_the_code() -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        stream = await connection.open_stream(wait_ack=False)
        await connection.aclose(4401, "revoked")
        assert decode(bytes(peer.arrived))[-1][:4] == (3, 0, 0, 0)
        assert (peer.close_code, peer.close_reason) == (4401, "revoked")
        assert connection.end_reason is not None
        assert connection.end_reason.close_code == 4401
        with pytest.raises(SessionEnded):
            await stream.send_all(b"x")
        await connection.aclose(4403)  # the first call decided


async def test_aclose_does_not_wait_for_a_peer_that_does_not_read(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        peer.capacity = 10
        stream = await connection.open_stream(wait_ack=False)
        await stream.send_all(bytes(50_000))
        begun = trio.current_time()
        await connection.aclose(1012)
        assert trio.current_time() - begun <= 2
        assert peer.close_code == 1012


async def test_a_cancelled_connection_breaks_its_streams_and_closes_with_1001() -> None:
    ours, theirs = transport_pair()
    connection = Connection(ours, role=Role.SERVER, accept_streams=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(connection.run)
        stream = await connection.open_stream(wait_ack=False)
        nursery.cancel_scope.cancel()
    assert theirs.close_code == 1001
    with pytest.raises(SessionEnded):
        await stream.receive_some()


async def test_a_stream_that_is_not_accepted_in_time_is_reset(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        ours, peer = transport_pair()
        connection = Connection(ours, role=Role.SERVER, accept_streams=True)
        await nursery.start(connection.run)
        await peer.send_all(window(1, SYN) + window(1, FIN))
        await trio.sleep(11.5)
        assert decode(bytes(peer.arrived))[-1][:3] == (1, RST, 1)
        assert connection.session.incoming == 0
        await connection.aclose()


async def test_what_the_transport_refused_is_not_answered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _theirs = transport_pair()

    async def text_message() -> bytes:
        await trio.lowlevel.checkpoint()
        raise TransportProtocolError(1003, "text message")

    monkeypatch.setattr(ours, "receive_some", text_message)
    connection = Connection(ours, role=Role.CLIENT, accept_streams=False)
    await connection.run()
    assert connection.end_reason is not None
    assert (connection.end_reason.kind, connection.end_reason.close_code) == (EndKind.PROTOCOL, 1003)


async def test_a_transport_that_breaks_while_writing_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)

        async def broken(_data: object) -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("connection reset")

        monkeypatch.setattr(peer.peer, "send_all", broken)
        with pytest.raises(SessionEnded, match="connection reset"):
            await connection.open_stream()
        assert connection.end_reason is not None
        assert connection.end_reason.kind is EndKind.TRANSPORT


async def test_closing_a_connection_that_never_ran_closes_its_transport() -> None:
    ours, theirs = transport_pair()
    connection = Connection(ours, role=Role.CLIENT, accept_streams=False, name="unborn")
    await connection.aclose(4409, "replaced")
    assert (theirs.close_code, theirs.close_reason) == (4409, "replaced")
    assert "unborn" in repr(connection)
