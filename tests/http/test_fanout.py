"""Who gets which unit: whole ones only, nobody held up, late ones at a boundary, ends as they were."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.http.fanout import UNITS, Fanout, Viewer
from tunnel.http.parts import Kind, Piece

FIRST, NEXT = b"--b\r\n", b"\r\n--b\r\n"


def frame(fanout: Fanout, n: int, size: int = 10) -> bytes:
    unit = b"%04d" % n + bytes(size)
    fanout.feed([Piece(Kind.OPENING, NEXT if n else FIRST), Piece(Kind.UNIT, unit)])
    return unit


def drain(viewer: Viewer) -> bytes:
    out = b""
    while data := viewer.take():
        out += data
    return out


def test_everybody_gets_what_came_unchanged() -> None:
    fanout = Fanout()
    viewers = [fanout.add() for _ in range(3)]
    got = [b""] * 3
    wanted = b""
    for n in range(20):
        wanted += (NEXT if n else FIRST) + frame(fanout, n)
        got = [each + drain(viewer) for each, viewer in zip(got, viewers, strict=True)]
    assert got == [wanted] * 3
    assert fanout.skipped == 0


def test_a_slow_viewer_skips_whole_frames_and_gets_the_latest() -> None:
    fanout = Fanout()
    slow, quick = fanout.add(), fanout.add()
    units = []
    for n in range(20):
        units.append(frame(fanout, n))
        drain(quick)
    assert slow.skipped == fanout.skipped == 20 - UNITS
    assert quick.skipped == 0
    assert drain(slow) == b"".join(NEXT + unit for unit in units[-UNITS:])


def test_the_queue_is_bounded_in_bytes_but_one_unit_always_fits() -> None:
    fanout = Fanout(size=100)
    viewer = fanout.add()
    for n in range(3):
        frame(fanout, n, 40)
    assert viewer.skipped == 2 or viewer.skipped == 1
    frame(fanout, 3, 5000)
    assert len(drain(viewer)) > 5000


def test_who_comes_later_sees_the_latest_frame_at_once_and_begins_with_its_delimiter() -> None:
    fanout = Fanout()
    fanout.add()
    frame(fanout, 0)
    latest = frame(fanout, 1)
    late = fanout.add()
    assert drain(late) == FIRST + latest
    following = frame(fanout, 2)
    assert drain(late) == NEXT + following


def test_events_are_not_shown_twice() -> None:
    fanout = Fanout(replay=False)
    fanout.feed([Piece(Kind.UNIT, b"data: 1\n\n")])
    late = fanout.add()
    assert late.take() is None
    fanout.feed([Piece(Kind.UNIT, b"data: 2\n\n")])
    assert drain(late) == b"data: 2\n\n"


def test_a_delimiter_that_comes_early_is_passed_on_at_once_and_once() -> None:
    fanout = Fanout()
    viewer = fanout.add()
    unit = frame(fanout, 0)
    assert drain(viewer) == FIRST + unit
    fanout.feed([Piece(Kind.OPENING, NEXT)])
    assert viewer.take() == NEXT
    assert viewer.take() is None
    late = fanout.add()
    assert drain(late) == FIRST + unit + NEXT
    fanout.feed([Piece(Kind.UNIT, b"second")])
    assert viewer.take() == b"second"
    assert late.take() == b"second"


def test_an_early_delimiter_serves_whichever_frame_comes_next() -> None:
    fanout = Fanout(units=1)
    viewer = fanout.add()
    frame(fanout, 0)
    drain(viewer)
    fanout.feed([Piece(Kind.OPENING, NEXT)])
    assert viewer.take() == NEXT
    fanout.feed([Piece(Kind.UNIT, b"one"), Piece(Kind.OPENING, NEXT), Piece(Kind.UNIT, b"two")])
    assert drain(viewer) == b"two"
    assert viewer.skipped == 1


def test_the_end_comes_behind_what_is_queued() -> None:
    fanout = Fanout()
    viewer = fanout.add()
    unit = frame(fanout, 0)
    fanout.feed([Piece(Kind.TAIL, b"\r\n--b--"), Piece(Kind.TAIL, b"bye")])
    fanout.end()
    assert viewer.take() == FIRST + unit
    assert viewer.take() == b"\r\n--b--bye"
    assert viewer.take() == b""
    assert viewer.take() == b""


def test_nobody_gets_anything_after_leaving() -> None:
    fanout = Fanout()
    viewer = fanout.add()
    fanout.remove(viewer)
    fanout.remove(viewer)
    frame(fanout, 0)
    assert viewer.take() is None
    assert not fanout.viewers


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["frame", "open", "take", "join"]), st.integers(0, 4)), max_size=80))
def test_whatever_the_pace_units_stay_whole_in_order_and_each_behind_one_delimiter(
    steps: list[tuple[str, int]],
) -> None:
    fanout = Fanout(units=2)
    viewers = [fanout.add() for _ in range(2)]
    got = [b"", b""]
    number, opened = 0, False
    for what, which in steps:
        if what in ("frame", "open") and not opened:
            fanout.feed([Piece(Kind.OPENING, b"|")])
            opened = True
        if what == "frame":
            fanout.feed([Piece(Kind.UNIT, b"<%d>" % number)])
            number, opened = number + 1, False
        elif what == "join" and len(viewers) < 5:
            viewers.append(fanout.add())
            got.append(b"")
        elif what == "take" and which < len(viewers):
            got[which] += viewers[which].take() or b""
    for viewer, text in zip(viewers, got, strict=True):
        seen = (text + drain(viewer)).split(b"|")
        assert seen[0] == b""
        numbers = [int(unit[1:-1]) for unit in seen[1:] if unit]
        assert all(unit == b"<%d>" % n for unit, n in zip([u for u in seen[1:] if u], numbers, strict=True))
        assert numbers == sorted(set(numbers))
        assert all(seen[1:-1])
