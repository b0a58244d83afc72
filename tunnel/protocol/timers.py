"""What time alone does to a session: pings, liveness, and streams that nobody answers.

Knows no clock: `now` is an argument. Nothing here runs per frame; a watchdog looks at marks that the rest left behind.
"""

import math

from tunnel.protocol.classes import REVIEW_SECONDS, review
from tunnel.protocol.core import Core
from tunnel.protocol.errors import EndKind, Fault
from tunnel.protocol.frames import INITIAL_WINDOW
from tunnel.protocol.inbound import Inbound
from tunnel.protocol.states import Input
from tunnel.protocol.stream import MuxStream


def request_ping(core: Core) -> bool:
    """Queue a ping unless one is outstanding (rust and js peers end the session on pongs they cannot match)."""
    if core.ping_outstanding is not None or core.ending is not None:
        return False
    core.ping_outstanding = core.next_ping
    core.next_ping = (core.next_ping + 1) & 0xFFFF_FFFF
    core.ping_pending = True
    core.last_ping = core.now
    return True


def tick(core: Core, inbound: Inbound, now: float) -> None:
    """Do what is due at `now`. Cheap when nothing is: cost grows only with what has run out."""
    if core.ending is not None:
        return
    core.now = now
    config = core.config
    silence = now - core.last_received
    if silence >= config.liveness_timeout:
        core.end(EndKind.LIVENESS, f"no byte for {silence:.0f} s")
        return
    if inbound.mid_frame and silence >= config.partial_frame_timeout:
        core.end(EndKind.LIVENESS, f"inside a frame for {silence:.0f} s")
        return
    if core.ping_outstanding is not None and now - core.last_ping >= config.liveness_timeout:
        core.ping_outstanding = None  # it was lost, though the peer lives: bytes came
        core.ping_pending = False
    busy = bool(core.streams) and now - core.last_ping >= config.rtt_interval
    if silence >= config.ping_idle or busy or now >= _open_probe_due(core):
        request_ping(core)
    _expire_opens(core, now)
    _expire_others(core, now)
    review(core, now)


def next_deadline(core: Core, inbound: Inbound) -> float:
    """When `tick` has something to do next, if no byte comes before: the same clock as `now`."""
    config = core.config
    last = core.last_received
    due = last + config.liveness_timeout
    if inbound.mid_frame:
        due = min(due, last + config.partial_frame_timeout)
    if core.ping_outstanding is None:
        due = min(due, last + config.ping_idle)
        if core.streams:
            due = min(due, core.last_ping + config.rtt_interval, _open_probe_due(core))
    else:
        due = min(due, core.last_ping + config.liveness_timeout)
        # Once its answer has come, silence is counted from there. No second look if it does not come.
        answered = core.last_ping + (core.rtt or 0.0) + config.ping_idle
        if core.now < answered:
            due = min(due, answered)
    if core.bulk:
        due = min(due, core.reviewed_at + REVIEW_SECONDS)
    for stream in core.opening.values():
        due = min(due, stream.opened_at + config.open_timeout)
        break
    for stream in core.backlog.values():
        due = min(due, stream.opened_at + config.accept_timeout)
        break
    for expiry in core.ghosts.values():
        due = min(due, expiry)
        break
    if core.closing:
        due = min(due, *(_close_due(core, stream) for stream in core.closing.values()))
    return due


def _open_probe_due(core: Core) -> float:
    """When to ask whether a peer lives that has said nothing since an open without ACK; infinity: it has, of all."""
    for stream in core.opening.values():
        if core.last_received <= stream.opened_at:
            config = core.config  # early enough for the answer to come before the open is given up
            return max(stream.opened_at, core.last_ping) + min(config.open_probe, config.open_timeout / 4)
    return math.inf


def _expire_opens(core: Core, now: float) -> None:
    """Give up the opens that were left without ACK for too long. They cost themselves, never the session.

    Some peers acknowledge with their first own frame, and an ACK may queue behind megabytes. So where bytes were sent
    and the peer has said anything since, the missing ACK means nothing: who waits for the answer judges the stream.
    """
    while core.opening:
        stream = next(iter(core.opening.values()))  # all wait equally long: the oldest is first
        if now - stream.opened_at < core.config.open_timeout:
            break
        if stream.send_window.available < INITIAL_WINDOW and core.last_received > stream.opened_at:
            del core.opening[stream.stream_id]
        else:
            core.drive(stream, Input.OPEN_TIMEOUT, Fault.OPEN_TIMEOUT)
    while core.ghosts:
        stream_id, expiry = next(iter(core.ghosts.items()))
        if now < expiry:
            break
        core.release_ghost(stream_id)


def _close_due(core: Core, stream: MuxStream) -> float:
    """When a stream that ends is given up, if nothing of it moves before."""
    config = core.config
    return stream.last_progress + (config.flush_stuck if stream.reset_wanted else config.close_timeout)


def _expire_others(core: Core, now: float) -> None:
    config = core.config
    while core.backlog:
        stream = next(iter(core.backlog.values()))
        if now - stream.opened_at < config.accept_timeout:
            break
        core.drive(stream, Input.RESET, Fault.ACCEPT_TIMEOUT)
    if core.closing:
        stuck = [s for s in core.closing.values() if now >= _close_due(core, s)]
        for stream in stuck:
            core.drive(stream, Input.CLOSE_TIMEOUT, Fault.CLOSE_TIMEOUT)
