"""The two classes of streams: interactive, and bulk that lets it pass (tunnel.md, "Streams have two classes").

A stream is bulk once it has moved more than 256 KiB within a second, either way, and interactive again when it has
been slower for a second of its own accord: not because its bytes waited here or its credit was held back. Knows no
frames and no queues. Costs an addition a frame; time is looked at once in 64 KiB.
"""

from typing import Final

from tunnel.protocol.core import Core
from tunnel.protocol.stream import CREDIT, STEP, MuxStream

_FAST: Final = 256 * 1024
# Bytes are counted in steps of 64 KiB: four of them between the first and the last of five stamps.
_STAMPS: Final = _FAST // STEP + 1
_SECOND: Final = 1.0
_NEAR: Final = 0.004
"""Round trip in seconds below which a peer is near: it is fast with less under way, and what waits is felt more."""
_NEAR_PART: Final = 4  # so it gets a quarter
REVIEW_SECONDS: Final = 1.0
"""Seconds between two reviews of the bulk streams of a session, while there are any."""


def weigh(core: Core, stream: MuxStream, now: float) -> None:
    """Note that an interactive stream has moved one step (64 KiB) or more; make it bulk if it was fast enough."""
    steps, stream.moved = divmod(stream.moved, STEP)
    stream.stamps = stamps = (*stream.stamps, *(now,) * min(steps, _STAMPS))[-_STAMPS:]
    if len(stamps) == _STAMPS and now - stamps[0] <= _SECOND:
        stream.bulk = True
        stream.moved = 0
        if not core.bulk:
            core.reviewed_at = now
        core.bulk[stream.stream_id] = stream
        if core.crowded:
            hold_back(core)


def weigh_received(core: Core, stream: MuxStream, credit: int, elapsed: float, now: float) -> None:
    """Weigh received bytes: `credit` bytes were consumed within `elapsed` seconds; the share of one second counts."""
    stream.moved += credit if elapsed <= _SECOND else int(credit / elapsed)
    if stream.moved >= STEP and not stream.bulk:
        weigh(core, stream, now)


def crowd(core: Core) -> None:
    """Hold the bulk streams' credit back, since an interactive stream moved bytes, until none does for a while."""
    core.spoken_at = core.now
    if not core.crowded:
        core.crowded = True
        hold_back(core)


def hold_back(core: Core) -> None:
    """Bound the bytes that each bulk stream may have under way to its share of the budget."""
    config = core.config
    if not config.bulk_window or not core.bulk:
        return
    part = _NEAR_PART if 0 < core.rtt_least < _NEAR else 1
    budget = max(config.bulk_budget // part, int(config.bulk_speed * core.rtt_least))
    share = max(config.bulk_window_least // part, min(config.bulk_window, budget // len(core.bulk)))
    for stream in core.bulk.values():
        _withhold(core, stream, share)


def review(core: Core, now: float) -> None:
    """Review the bulk streams, once a second while there are any.

    Streams that have become slow are interactive again, and credit is released if no interactive stream moves bytes.
    """
    if not core.bulk:
        core.crowded = False
        return
    if now - core.reviewed_at < REVIEW_SECONDS:
        return
    core.reviewed_at = now
    _find_calm(core, now)
    since = now - core.config.crowded_seconds
    if core.bulk and _last_spoken(core, since) >= since:
        core.crowded = True
        hold_back(core)
    elif core.crowded:
        core.crowded = False
        for stream in core.bulk.values():
            _withhold(core, stream, None)


def _find_calm(core: Core, now: float) -> None:
    for stream in list(core.bulk.values()):
        if now - stream.stamps[-1] < _SECOND:
            continue  # has not been bulk for so long
        calm, stream.moved = _calm(stream), 0
        if calm:
            stream.bulk = False
            stream.stamps = ()
            del core.bulk[stream.stream_id]
            _withhold(core, stream, None)


def _last_spoken(core: Core, since: float) -> float:
    """When an interactive stream last moved bytes. Bytes that the peer sends unasked (events) are noticed here only."""
    if core.spoken_at < since:
        marks = [one.last_progress for one in core.streams.values() if not one.bulk and one.acked]
        core.spoken_at = max((core.spoken_at, *marks))
    return core.spoken_at


def _calm(stream: MuxStream) -> bool:
    """Whether the stream was slow since the last review, and not because its bytes or credit were held back here."""
    if stream.send_buffer:
        return False
    return stream.moved == 0 if stream.receive_window.withheld else stream.moved <= _FAST


def _withhold(core: Core, stream: MuxStream, window: int | None) -> None:
    if stream.receive_window.withhold(window) and not stream.read_eof:
        core.say(stream, CREDIT)
