"""Where endless answers may be stepped into: every shape that cameras write, cut at every byte; doubts; linear work."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.http.parts import (
    MAX_PART_HEAD,
    Cutter,
    EventCutter,
    PartCutter,
    PartError,
    Seam,
    boundary_of,
    is_event_stream,
)

JPEG = b"\xff\xd8\r\n--not\r\n\xff\xd9\n\n"


def counted(body: bytes, delimiter: bytes = b"--b\r\n", before: bytes = b"\r\n") -> bytes:
    return before + delimiter + b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def plain(body: bytes, delimiter: bytes = b"--b\r\n", before: bytes = b"\r\n") -> bytes:
    return before + delimiter + b"Content-Type: image/jpeg\r\n\r\n" + body


def read(cutter: Cutter, *pieces: bytes, end: bool = True) -> list[Seam]:
    found = [seam for data in pieces for seam in cutter.feed(data)]
    if end:
        cutter.end()
    return found


def units(stream: bytes, seams: list[Seam]) -> list[bytes]:
    """What stands behind each delimiter, up to the next; the closing one is `--b--`."""
    ends = [*(seam.start for seam in seams[1:]), len(stream)]
    return [stream[seam.head : end].partition(b"--b--")[0] for seam, end in zip(seams, ends, strict=True)]


def bodies(stream: bytes, seams: list[Seam]) -> list[bytes]:
    return [unit.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for unit in units(stream, seams)]


def byte_by_byte(stream: bytes) -> list[bytes]:
    return [stream[n : n + 1] for n in range(len(stream))]


STREAMS = {
    "counted": counted(JPEG, before=b"") + counted(b"") + counted(b"third"),
    "searched": plain(b"one", before=b"") + plain(JPEG) + plain(b"three"),
    "mixed": counted(JPEG, before=b"") + plain(b"--bx\r\n-- b") + counted(b"x"),
    "closed": plain(b"one", before=b"") + counted(b"two") + b"\r\n--b--\r\n",
    "closed at once": plain(b"one", before=b"") + plain(b"two") + b"\r\n--b--",
    "bare LF": b"--b\nContent-Length: 3\n\nabc\n--b\nX: y\n\ndef\n--b\n\nghi\n--b--\n",
    "no heads": b"--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--",
    "blanks behind": b"--b \t\r\n\r\none\r\n--b  \r\n\r\ntwo\r\n--b--",
    "no line before": b"--b\r\nContent-Length: 3\r\n\r\nabc--b\r\nContent-Length: 3\r\n\r\ndef--b--",
    "lines like delimiters": plain(b"--b\n--bx\n-\n--\n--b-\n\n--b--x", before=b"") + plain(b"two"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_cut_at_any_byte_it_is_the_same(name: str) -> None:
    stream = STREAMS[name]
    whole = PartCutter(b"b")
    wanted = read(whole, stream)
    assert wanted
    assert not whole.doubt
    for cut in range(len(stream) + 1):
        assert read(PartCutter(b"b"), stream[:cut], stream[cut:]) == wanted
    single = PartCutter(b"b")
    assert read(single, *byte_by_byte(stream)) == wanted
    assert single.whole == whole.whole


def test_parts_are_what_was_written() -> None:
    def found(name: str) -> list[bytes]:
        return bodies(STREAMS[name], read(PartCutter(b"b"), STREAMS[name]))

    assert found("counted") == [JPEG, b"", b"third"]
    assert found("searched") == [b"one", JPEG, b"three"]
    assert found("mixed") == [JPEG, b"--bx\r\n-- b", b"x"]
    assert found("closed") == found("closed at once") == [b"one", b"two"]
    stream = STREAMS["bare LF"]
    assert [unit[-4:] for unit in units(stream, read(PartCutter(b"b"), stream))] == [b"abc\n", b"def\n", b"ghi\n"]


def test_a_boundary_that_is_named_with_its_dashes() -> None:
    stream = plain(b"one", b"----frame\r\n", b"") + plain(b"two", b"----frame\r\n") + b"\r\n----frame--"
    assert len(read(PartCutter(b"--frame"), stream)) == 2
    cutter = PartCutter(b"--frame")
    cutter.feed(stream.replace(b"----", b"--"))
    assert cutter.doubt


def test_a_counted_part_is_whole_as_soon_as_its_last_byte_has_come() -> None:
    cutter = PartCutter(b"b")
    stream = counted(JPEG, before=b"")
    cutter.feed(stream[:-1])
    assert cutter.whole == 0
    cutter.feed(stream[-1:])
    assert cutter.whole == len(stream)


def test_a_delimiter_is_told_before_its_part() -> None:
    cutter = PartCutter(b"b")
    size = len(counted(b"x", before=b""))
    cutter.feed(counted(b"x", before=b""))
    assert cutter.feed(b"\r\n--b\r\n") == [Seam(size + 2, size + 7)]


def test_lengths_are_no_boundaries() -> None:
    body = b"\r\n--b\r\nContent-Length: 2\r\n\r\nxx"
    stream = counted(body, before=b"") + counted(b"y")
    assert bodies(stream, read(PartCutter(b"b"), stream)) == [body, b"y"]


LATER = counted(b"later") * 3
DOUBTS = {
    "each delimiter closes": counted(b"one", b"--b--\r\n", b"") + counted(b"two", b"--b--\r\n"),
    "bytes behind the closing one": counted(b"one", before=b"") + b"\r\n--b--\r\nbye",
    "blank lines behind the closing one": counted(b"one", before=b"") + b"\r\n--b--" + b"\r\n" * 20,
    "no delimiter": counted(b"one", before=b"") + b"\r\nContent-Length: 3\r\n\r\ntwo",
    "blank delimiters": counted(b"one", before=b"") + b"\r\n" * 20,
    "a length too short": counted(b"one", before=b"") + b"more" + LATER,
    "a length too long": counted(b"one", before=b"").replace(b"h: 3", b"h: 9") + LATER,
    "two lengths": b"--b\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "a head over its bound": b"--b\r\nX: " + b"y" * MAX_PART_HEAD,
    "a part over its bound": b"--b\r\n\r\n" + bytes(70_000),
    "a counted part over its bound": b"--b\r\nContent-Length: 99999999999\r\n\r\n",
    "something before": b"hello\r\n" + counted(b"one"),
    "another delimiter": counted(b"one", b"--c\r\n", b""),
    "dashes": counted(b"one", b"--b-\r\n", b""),
    "too many": b"--b\n\n\n" * 5000,
    "too many that look as one": b"--b\r\n\r\n" + b"\n--b" * 5000,
}


@pytest.mark.parametrize("name", DOUBTS)
def test_where_it_is_in_doubt_it_gives_up(name: str) -> None:
    """It says so, holds nothing any more, and the end is nobody's fault."""
    for pieces in ([DOUBTS[name]], byte_by_byte(DOUBTS[name])):
        cutter = PartCutter(b"b", max_part=64 << 10)
        read(cutter, *pieces)
        assert cutter.doubt
        assert cutter.feed(counted(b"x")) == []
        assert "held=0" in repr(cutter)


@pytest.mark.parametrize("stream", [counted(JPEG)[:-1], b"--b\r\nContent-Le"])
def test_an_end_within_a_part_is_none(stream: bytes) -> None:
    with pytest.raises(PartError):
        read(PartCutter(b"b"), stream)


@pytest.mark.parametrize("stream", [b"", b"\r\n", counted(b"x") + b"\r\n"])
def test_an_end_between_parts_is_clean(stream: bytes) -> None:
    assert len(read(PartCutter(b"b"), stream)) == (1 if b"x" in stream else 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=80)), min_size=1, max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_any_parts_cut_anyhow(parts: list[tuple[bool, bytes]], cuts: list[int]) -> None:
    wanted = [body.replace(b"\n--b", b"\n__b").rstrip(b"\r\n") for _, body in parts]
    stream = b"".join((counted if c else plain)(body) for (c, _), body in zip(parts, wanted, strict=True))
    stream += b"\r\n--b--"
    pieces, at = [], 0
    while at < len(stream):
        step = cuts[len(pieces) % len(cuts)]
        pieces.append(stream[at : at + step])
        at += step
    cutter = PartCutter(b"b")
    seams = read(cutter, *pieces)
    assert not cutter.doubt
    assert [stream[seam.start : seam.head] for seam in seams] == [b"--b\r\n"] * len(parts)
    assert [unit.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for unit in units(stream, seams)] == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"--b", b"\r\n", b"\n", b"--", b"Content-Length: 5", b"x", b"\x00"]), max_size=60))
def test_in_rubbish_each_seam_is_a_delimiters_line(words: list[bytes]) -> None:
    """However it is cut: the same seams, at lines that are delimiters, up to the same doubt."""
    stream = b"".join(words)
    whole, pieces = PartCutter(b"b", max_part=64), PartCutter(b"b", max_part=64)
    seams = read(whole, stream, end=False)
    found = read(pieces, *words, end=False)
    assert bool(whole.doubt) >= bool(pieces.doubt) or len(stream) > 64
    assert seams[: len(found)] == found[: len(seams)]
    for seam in [*seams, *found]:
        assert stream[seam.start : seam.head].rstrip(b"\r\n \t") == b"--b"
        assert stream[seam.start : seam.head].endswith(b"\n")


EVENTS = b"retry: 5\r\n\r\nid: 1\ndata: a\ndata: b\n\n: ping\r\n\r\ndata: last\r\r"


def events(stream: bytes, seams: list[Seam]) -> list[bytes]:
    starts = [seam.start for seam in seams]
    return [stream[a:b] for a, b in pairwise(starts)]


def test_events_end_with_an_empty_line() -> None:
    stream = EVENTS + b"data: x\n\n"
    wanted = [b"retry: 5\r\n\r\n", b"id: 1\ndata: a\ndata: b\n\n", b": ping\r\n\r\n", b"data: last\r\r", b"data: x\n\n"]
    for cut in range(len(stream) + 1):
        assert events(stream, read(EventCutter(), stream[:cut], stream[cut:])) == wanted
    assert events(stream, read(EventCutter(), *byte_by_byte(stream))) == wanted


def test_an_event_over_its_bound_is_in_doubt() -> None:
    cutter = EventCutter(100)
    cutter.feed(b"data: " + b"x" * 100)
    assert cutter.doubt
    assert cutter.feed(b"data: 1\n\n") == []


def test_of_many_events_at_once_some_are_stepped_over() -> None:
    seams = EventCutter().feed(b":\n\n" * 10_000)
    assert 16 < len(seams) < 600
    assert all(seam.start % 3 == 0 for seam in seams)


@pytest.mark.parametrize(
    ("value", "boundary"),
    [
        (b"multipart/x-mixed-replace; boundary=frame", b"frame"),
        (b'Multipart/X-Mixed-Replace ;BOUNDARY="a b"', b"a b"),
        (b"multipart/x-mixed-replace;charset=x;boundary=--f", b"--f"),
        (b"multipart/x-mixed-replace", None),
        (b'multipart/x-mixed-replace; boundary=" "', None),
        (b'multipart/x-mixed-replace; boundary="b "', None),
        (b"multipart/x-mixed-replace; boundary=" + b"b" * 71, None),
        (b"multipart/mixed; boundary=frame", None),
        (b"image/jpeg", None),
        (b"", None),
    ],
)
def test_which_answers_are_parts(value: bytes, boundary: bytes | None) -> None:
    assert boundary_of(value) == boundary


def test_which_answers_are_events() -> None:
    assert is_event_stream(b"Text/Event-Stream; charset=utf-8")
    assert not is_event_stream(b"text/plain")
