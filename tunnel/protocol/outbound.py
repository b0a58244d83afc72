"""From state to bytes: one batch at a time, made when the transport can take it.

Knows nothing of reading. The order is fixed: GoAway and pongs, resets, then SYN, ACK and credit, then data; within a
stream the SYN is first and the FIN last; no frame carries more than one flag, and only window updates carry any
(yamux.md §4 and §11).
"""

from tunnel.protocol.classes import crowd, weigh, weigh_received
from tunnel.protocol.core import Core
from tunnel.protocol.errors import Fault
from tunnel.protocol.frames import ACK, FIN, GO_AWAY, HEADER, HEADER_SIZE, PING, RST, SYN, WINDOW_UPDATE
from tunnel.protocol.states import Input
from tunnel.protocol.stream import CREDIT, MuxStream

# SYN, ACK and credit of one stream.
_CONTROL_ROOM = 3 * HEADER_SIZE


class Outbound:
    """The writing half of a session."""

    __slots__ = ("_core",)

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def pending(self) -> bool:
        """True if `collect` would return something."""
        core = self._core
        return bool(
            core.ring
            or core.control
            or core.pongs
            or core.ping_pending
            or core.resets
            or core.refusals
            or core.goaway is not None
        )

    def collect(self, limit: int, now: float) -> bytearray:
        """The next bytes for the transport, at most `limit`; empty if there is nothing to say."""
        core = self._core
        core.now = now
        out = bytearray()
        if core.goaway is not None or core.pongs or core.ping_pending or core.resets or core.refusals:
            self._urgent(out, limit, now)
        if core.control:
            self._control(out, limit, now)
        if core.ring:
            self._data(out, limit, now)
        core.counters.bytes_out += len(out)
        return out

    def _urgent(self, out: bytearray, limit: int, now: float) -> None:
        core = self._core
        pack = HEADER.pack
        counters = core.counters
        if core.goaway is not None:
            out += pack(GO_AWAY, 0, 0, core.goaway)
            core.goaway = None
            counters.frames_out += 1
        room = (limit - len(out)) // HEADER_SIZE
        for value in core.pongs[:room]:
            out += pack(PING, ACK, 0, value)
            counters.frames_out += 1
        del core.pongs[:room]
        if core.ping_pending and len(out) + HEADER_SIZE <= limit and core.ping_outstanding is not None:
            core.ping_pending = False
            core.last_ping = now
            out += pack(PING, SYN, 0, core.ping_outstanding)
            counters.frames_out += 1
        for resets in (core.resets, core.refusals):
            room = (limit - len(out)) // HEADER_SIZE
            for stream_id in resets[:room]:
                out += pack(WINDOW_UPDATE, RST, stream_id, 0)
                counters.frames_out += 1
            del resets[:room]

    def _control(self, out: bytearray, limit: int, now: float) -> None:
        core = self._core
        done = 0
        for stream in core.control:
            if len(out) + _CONTROL_ROOM > limit:
                break
            done += 1
            stream.in_control = False
            if stream.pending:
                self._say(stream, out, now)
        if done == len(core.control):
            core.control.clear()
        else:
            del core.control[:done]

    def _say(self, stream: MuxStream, out: bytearray, now: float) -> None:
        core = self._core
        pending = stream.pending
        stream.pending = 0
        window = stream.receive_window
        if pending & (SYN | ACK):
            flag = pending & (SYN | ACK)  # never both: one opens, the other accepts
            out += HEADER.pack(WINDOW_UPDATE, flag, stream.stream_id, window.announce(core.config.receive_window))
            core.counters.frames_out += 1
            stream.syn_sent = True
            stream.ack_owed = False
            if stream.ready_to_send:
                core.ring.add(stream)
        if pending & CREDIT and window.owed > window.withheld:
            may_grow = core.buffered < core.config.soft_buffered and not (stream.bulk and core.crowded)
            weigh_received(core, stream, window.owed - window.withheld, now - window.credited_at, now)
            credit = window.take_credit(now, core.rtt if may_grow else None, core.config.max_receive_window)
            if not credit:
                return  # just found to be bulk beside others: all of it is held back
            core.largest_window = max(core.largest_window, window.size)
            out += HEADER.pack(WINDOW_UPDATE, 0, stream.stream_id, credit)
            core.counters.frames_out += 1
            core.counters.credits_out += 1

    def _data(self, out: bytearray, limit: int, now: float) -> None:
        core = self._core
        ring = core.ring
        counters = core.counters
        drained = ring.fill(out, limit, now)
        for stream in ring.relieved:
            core.touch(stream)
        ring.relieved.clear()
        if core.bulk and ring.spoken_at == now:
            crowd(core)
        if ring.heavy:
            for stream in ring.heavy:
                weigh(core, stream, now)
                if stream.bulk:
                    ring.demote(stream)
            ring.heavy.clear()
        counters.frames_out += ring.frames
        counters.window_stalls += ring.stalls
        ring.frames = ring.stalls = 0
        for stream in drained:
            if stream.owes_fin:
                if len(out) + HEADER_SIZE > limit:
                    ring.add(stream)
                    continue
                out += HEADER.pack(WINDOW_UPDATE, FIN, stream.stream_id, 0)
                counters.frames_out += 1
                stream.last_progress = now
                # Go never acknowledges a stream that we half-closed before it was accepted: no open timeout then.
                core.opening.pop(stream.stream_id, None)
                core.drive(stream, Input.SEND_FIN)
            if stream.reset_wanted:
                core.drive(stream, Input.RESET, Fault.LOCAL_RESET)
