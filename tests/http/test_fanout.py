"""Who gets which unit: whole ones only, nobody held up, late ones at a boundary, ends as they were."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.http.fanout import UNITS, Fanout, Viewer
from tunnel.http.parts import Seam

FIRST, NEXT = b"--b\r\n", b"\r\n--b\r\n"


class Source:
    """A body that is written as a test says: delimiters and units, with what a cutter would say of them."""

    def __init__(self, fanout: Fanout) -> None:
        self.fanout = fanout
        self.size = self.whole = 0
        self.number = 0

    def delimiter(self, data: bytes = b"") -> None:
        data = data or (NEXT if self.size else FIRST)
        start = self.size + len(data) - len(data.lstrip(b"\r\n"))
        self.size += len(data)
        self.fanout.feed(data, [Seam(start, self.size)], self.whole)

    def unit(self, data: bytes) -> bytes:
        """In two pieces, and whole with its last byte."""
        self.fanout.feed(data[:3], (), self.whole)
        self.size = self.whole = self.size + len(data)
        self.fanout.feed(data[3:], (), self.whole)
        return data

    def frame(self, size: int = 10) -> bytes:
        self.delimiter()
        self.number += 1
        return self.unit(b"%04d" % (self.number - 1) + bytes(size))


def drain(viewer: Viewer) -> bytes:
    out = b""
    while data := viewer.take():
        out += data
    return out


def test_everybody_gets_what_came_unchanged() -> None:
    fanout = Fanout()
    source = Source(fanout)
    viewers = [fanout.add() for _ in range(3)]
    got = [b""] * 3
    wanted = b""
    for n in range(20):
        wanted += (NEXT if n else FIRST) + source.frame()
        got = [each + drain(viewer) for each, viewer in zip(got, viewers, strict=True)]
    assert got == [wanted] * 3
    assert fanout.skipped == 0


def test_who_keeps_up_gets_bytes_as_they_come() -> None:
    fanout = Fanout()
    viewer = fanout.add()
    for piece in (b"--", b"b\r", b"\n\r\nhal", b"f"):
        fanout.feed(piece)
        assert viewer.take() == piece
        assert viewer.take() is None


def test_a_slow_viewer_skips_whole_frames_and_gets_the_latest() -> None:
    fanout = Fanout()
    source = Source(fanout)
    slow, quick = fanout.add(), fanout.add()
    units = []
    for _ in range(20):
        units.append(source.frame())
        drain(quick)
    assert slow.skipped == fanout.skipped == 20 - UNITS
    assert quick.skipped == 0
    assert drain(slow) == FIRST + NEXT.join(units[-UNITS:])


def test_many_frames_at_once_are_all_for_who_had_everything_before() -> None:
    """A read of 128 KiB may hold more frames than a viewer may be behind: nobody was slow about these."""
    fanout = Fanout()
    source = Source(fanout)
    quick, slow = fanout.add(), fanout.add()
    source.frame()
    drain(quick)
    at = source.size
    burst = b"".join(NEXT + b"%04d" % n for n in range(50))
    seams = [Seam(at + 11 * n + 2, at + 11 * n + 7) for n in range(50)]
    fanout.feed(burst, seams, at + len(burst))
    assert drain(quick) == burst
    assert quick.skipped == 0
    assert slow.skipped == 47
    assert drain(slow) == b"--b\r\n" + NEXT.join(b"%04d" % n for n in range(46, 50))


def test_who_is_slow_within_a_frame_gets_that_one_whole_and_then_one_of_the_latest() -> None:
    fanout = Fanout()
    source = Source(fanout)
    slow = fanout.add()
    source.delimiter()
    fanout.feed(b"half")
    got = slow.take() or b""
    got += slow.take() or b""
    source.size += 4
    source.unit(b" and half")
    units = [source.frame() for _ in range(20)]
    assert got + drain(slow) == FIRST + b"half and half\r\n" + FIRST + NEXT.join(units[-UNITS:])


def test_what_is_kept_is_bounded_but_one_unit_always_fits() -> None:
    fanout = Fanout(size=100)
    source = Source(fanout)
    viewer = fanout.add()
    for _ in range(3):
        source.frame(40)
    assert viewer.skipped in (1, 2)
    source.frame(5000)
    assert len(drain(viewer)) > 5000
    for _ in range(100):
        source.frame(30_000)
    assert 30_000 < fanout.held < 70_000
    fanout.remove(viewer)
    source.frame(30_000)
    assert fanout.held < 70_000


def test_what_is_kept_for_slow_viewers_is_counted_and_let_go() -> None:
    fanout = Fanout(units=1)
    source = Source(fanout)
    viewers = []
    for _ in range(10):
        viewers.append(fanout.add())
        source.delimiter()
        fanout.feed(b"x")
        source.size += 1
        assert viewers[-1].take()
        source.unit(bytes(100_000))
    assert 800_000 < fanout.held < 1_200_000
    for viewer in viewers[:5]:
        drain(viewer)
    assert 400_000 < fanout.held < 800_000
    for viewer in viewers:
        fanout.remove(viewer)
    source.frame(0)
    assert fanout.held < 110_000


def test_who_comes_later_sees_the_latest_frame_at_once_and_begins_with_its_delimiter() -> None:
    fanout = Fanout()
    source = Source(fanout)
    fanout.add()
    source.frame()
    latest = source.frame()
    late = fanout.add()
    assert drain(late) == FIRST + latest
    following = source.frame()
    assert drain(late) == NEXT + following


def test_events_are_not_shown_twice() -> None:
    fanout = Fanout(replay=False)
    fanout.feed(b"data: 1\n\ndat", [Seam(0, 0), Seam(9, 9)], 9)
    late = fanout.add()
    assert late.take() is None
    fanout.feed(b"a: 2\n\n", [Seam(18, 18)], 18)
    assert late.take() is None
    at_once = fanout.add()
    fanout.feed(b"data: 3\n\n", [Seam(27, 27)], 27)
    assert drain(late) == drain(at_once) == b"data: 3\n\n"


def test_a_delimiter_that_comes_early_is_passed_on_at_once_and_once() -> None:
    fanout = Fanout()
    source = Source(fanout)
    viewer = fanout.add()
    unit = source.frame()
    assert drain(viewer) == FIRST + unit
    source.delimiter()
    assert viewer.take() == NEXT
    assert viewer.take() is None
    late = fanout.add()
    assert drain(late) == FIRST + unit + NEXT
    source.unit(b"second")
    assert drain(viewer) == drain(late) == b"second"


def test_an_early_delimiter_serves_whichever_frame_comes_next() -> None:
    fanout = Fanout(units=1)
    source = Source(fanout)
    viewer = fanout.add()
    source.frame()
    drain(viewer)
    source.delimiter()
    assert viewer.take() == NEXT
    source.unit(b"one")
    source.delimiter()
    source.unit(b"two")
    assert drain(viewer) == b"two"
    assert viewer.skipped == 1


def test_the_end_comes_behind_what_is_still_to_be_taken() -> None:
    fanout = Fanout()
    source = Source(fanout)
    viewer = fanout.add()
    unit = source.frame()
    fanout.feed(b"\r\n--b--")
    fanout.end()
    assert drain(viewer) == FIRST + unit + b"\r\n--b--"
    assert viewer.take() == b""
    assert viewer.take() == b""


def test_where_nothing_can_be_left_out_all_is_passed_on_or_the_viewer_is_lost() -> None:
    fanout = Fanout(size=100_000)
    Source(fanout).frame()
    quick, slow = fanout.add(), fanout.add()
    drain(quick)
    drain(slow)
    fanout.share_no_more()
    sent, got = b"", b""
    while not slow.lost:
        piece = b"%06d" % len(sent) * 1000
        fanout.feed(piece)
        sent += piece
        assert fanout.behind == len(piece)
        got += drain(quick)
        assert len(sent) < 1_000_000
    assert got == sent
    assert not quick.lost
    assert slow.take() == b""
    assert fanout.held < 300_000


def test_nobody_gets_anything_after_leaving() -> None:
    fanout = Fanout()
    viewer = fanout.add()
    fanout.remove(viewer)
    fanout.remove(viewer)
    Source(fanout).frame()
    assert not fanout.viewers


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["frame", "open", "half", "take", "join"]), st.integers(0, 4)), max_size=80))
def test_whatever_the_pace_units_stay_whole_in_order_and_each_behind_one_delimiter(
    steps: list[tuple[str, int]],
) -> None:
    fanout = Fanout(units=2)
    source = Source(fanout)
    viewers = [fanout.add() for _ in range(2)]
    got = [b"", b""]
    number, opened, begun = 0, False, b""
    for what, which in steps:
        if what in ("frame", "open") and not opened:
            source.delimiter(b"|")
            opened = True
        if what == "half" and opened and not begun:
            begun = b"<"
            fanout.feed(begun)
            source.size += 1
        if what == "frame":
            source.unit((b"<%d>" % number)[len(begun) :])
            number, opened, begun = number + 1, False, b""
        elif what == "join" and len(viewers) < 5:
            viewers.append(fanout.add())
            got.append(b"")
        elif what == "take" and which < len(viewers):
            got[which] += viewers[which].take() or b""
    if begun:
        source.unit(b"%d>" % number)
    for viewer, text in zip(viewers, got, strict=True):
        seen = (text + drain(viewer)).split(b"|")
        assert seen[0] == b""
        numbers = [int(unit[1:-1]) for unit in seen[1:] if unit]
        assert all(unit == b"<%d>" % n for unit, n in zip([u for u in seen[1:] if u], numbers, strict=True))
        assert numbers == sorted(set(numbers))
        assert all(seen[1:-1])
