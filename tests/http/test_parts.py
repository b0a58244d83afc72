"""Endless answers cut into whole parts and events: every shape that cameras write, cut at every byte."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.http.parts import (
    MAX_PART_HEAD,
    EventReader,
    Kind,
    PartError,
    PartReader,
    Piece,
    UnitReader,
    boundary_of,
    is_event_stream,
)

JPEG = b"\xff\xd8\r\n--not\r\n\xff\xd9\n\n"


def counted(body: bytes, delimiter: bytes = b"--b\r\n", before: bytes = b"\r\n") -> bytes:
    return before + delimiter + b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def plain(body: bytes, delimiter: bytes = b"--b\r\n", before: bytes = b"\r\n") -> bytes:
    return before + delimiter + b"Content-Type: image/jpeg\r\n\r\n" + body


def read(reader: UnitReader, *pieces: bytes, end: bool = True) -> list[Piece]:
    found = [piece for data in pieces for piece in reader.feed(data)]
    return found + (reader.end() if end else [])


def units(pieces: list[Piece]) -> list[bytes]:
    return [data for kind, data in pieces if kind is Kind.UNIT]


def bodies(pieces: list[Piece]) -> list[bytes]:
    return [unit.partition(b"\r\n\r\n")[2] for unit in units(pieces)]


STREAMS = {
    "counted": counted(JPEG, before=b"") + counted(b"") + counted(b"third"),
    "searched": plain(b"one", before=b"") + plain(JPEG) + plain(b"three"),
    "mixed": counted(JPEG, before=b"") + plain(b"--bx\r\n-- b") + counted(b"x"),
    "closed": plain(b"one", before=b"") + counted(b"two") + b"\r\n--b--\r\nbye",
    "preamble": b"hello\r\n" + plain(b"one", before=b"") + plain(b"two") + b"\r\n--b--",
    "bare LF": b"--b\nContent-Length: 3\n\nabc\n--b\nX: y\n\ndef\n--b\n\nghi\n--b--\n",
    "no heads": b"--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--",
    "blanks behind": b"--b \t\r\n\r\none\r\n--b  \r\n\r\ntwo\r\n--b--",
    "no line before": b"--b\r\nContent-Length: 3\r\n\r\nabc--b\r\nContent-Length: 3\r\n\r\ndef--b--",
}


@pytest.mark.parametrize("name", STREAMS)
def test_cut_at_any_byte_it_is_the_same(name: str) -> None:
    stream = STREAMS[name]
    whole = read(PartReader(b"b"), stream)
    assert b"".join(data for _, data in whole) == stream
    for cut in range(len(stream) + 1):
        assert units(read(PartReader(b"b"), stream[:cut], stream[cut:])) == units(whole)
    single = read(PartReader(b"b"), *(stream[n : n + 1] for n in range(len(stream))))
    assert units(single) == units(whole)
    assert b"".join(data for _, data in single) == stream


def test_parts_are_what_was_written() -> None:
    assert bodies(read(PartReader(b"b"), STREAMS["counted"])) == [JPEG, b"", b"third"]
    assert bodies(read(PartReader(b"b"), STREAMS["searched"])) == [b"one", JPEG, b"three"]
    assert bodies(read(PartReader(b"b"), STREAMS["mixed"])) == [JPEG, b"--bx\r\n-- b", b"x"]
    assert bodies(read(PartReader(b"b"), STREAMS["closed"])) == [b"one", b"two"]
    assert units(read(PartReader(b"b"), STREAMS["no heads"])) == [b"\r\none", b"\r\ntwo"]
    assert [unit[-3:] for unit in units(read(PartReader(b"b"), STREAMS["bare LF"]))] == [b"abc", b"def", b"ghi"]


def test_a_boundary_that_is_named_with_its_dashes() -> None:
    stream = plain(b"one", b"--frame\r\n", b"") + plain(b"two", b"--frame\r\n") + b"\r\n--frame--"
    assert bodies(read(PartReader(b"--frame"), stream)) == [b"one", b"two"]
    doubled = plain(b"one", b"----frame\r\n", b"") + plain(b"two", b"----frame\r\n") + b"\r\n----frame--"
    assert bodies(read(PartReader(b"--frame"), doubled)) == [b"one", b"two"]


def test_a_counted_part_is_whole_as_soon_as_its_last_byte_has_come() -> None:
    reader = PartReader(b"b")
    assert units(reader.feed(counted(JPEG, before=b"")[:-1])) == []
    assert len(units(reader.feed(JPEG[-1:]))) == 1


def test_a_delimiter_is_told_before_its_part() -> None:
    reader = PartReader(b"b")
    reader.feed(counted(b"x", before=b""))
    assert reader.feed(b"\r\n--b\r\n") == [Piece(Kind.OPENING, b"\r\n--b\r\n")]


def test_lengths_are_no_boundaries() -> None:
    body = b"\r\n--b\r\nContent-Length: 2\r\n\r\nxx"
    assert bodies(read(PartReader(b"b"), counted(body, before=b"") + counted(b"y"))) == [body, b"y"]


@pytest.mark.parametrize(
    "stream",
    [
        b"--b\r\nContent-Length: 1001\r\n\r\n",
        b"--b\r\nContent-Length: 99999999999\r\n\r\n",
        b"--b\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"--b\r\n\r\n" + bytes(2000),
        b"--b\r\nX: " + b"y" * 2000,
        b"x" * 2000,
    ],
)
def test_what_is_over_its_bound_is_refused(stream: bytes) -> None:
    with pytest.raises(PartError):
        read(PartReader(b"b", max_part=1000), stream)


def test_a_head_over_its_bound_is_refused_whole_or_not() -> None:
    with pytest.raises(PartError):
        PartReader(b"b").feed(b"--b\r\nX: " + b"y" * MAX_PART_HEAD)
    with pytest.raises(PartError):
        PartReader(b"b").feed(b"--b\r\nX: " + b"y" * MAX_PART_HEAD + b"\r\n\r\n")


@pytest.mark.parametrize("stream", [counted(JPEG)[:-1], b"--b\r\nContent-Le", b"no boundary at all"])
def test_an_end_within_a_part_is_none(stream: bytes) -> None:
    with pytest.raises(PartError):
        read(PartReader(b"b"), stream)


@pytest.mark.parametrize("stream", [b"", b"\r\n", counted(b"x") + b"\r\n"])
def test_an_end_between_parts_is_clean(stream: bytes) -> None:
    assert len(units(read(PartReader(b"b"), stream))) == (1 if b"x" in stream else 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=80)), min_size=1, max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_any_parts_cut_anyhow(parts: list[tuple[bool, bytes]], cuts: list[int]) -> None:
    wanted = [body.replace(b"\n--b", b"\n__b") for _, body in parts]
    stream = b"".join((counted if c else plain)(body) for (c, _), body in zip(parts, wanted, strict=True))
    stream += b"\r\n--b--"
    pieces, at = [], 0
    while at < len(stream):
        step = cuts[len(pieces) % len(cuts)]
        pieces.append(stream[at : at + step])
        at += step
    assert bodies(read(PartReader(b"b"), *pieces)) == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"--b", b"\r\n", b"\n", b"--", b"Content-Length: 5", b"x", b"\x00"]), max_size=60))
def test_rubbish_is_refused_or_passes_unchanged(words: list[bytes]) -> None:
    reader = PartReader(b"b", max_part=64)
    try:
        found = read(reader, *words)
    except PartError:
        return
    assert b"".join(data for _, data in found) == b"".join(words)


EVENTS = b"retry: 5\r\n\r\nid: 1\ndata: a\ndata: b\n\n: ping\r\n\r\ndata: last\r\r"


def test_events_end_with_an_empty_line() -> None:
    stream = EVENTS + b"data: x\n\n"
    wanted = [b"retry: 5\r\n\r\n", b"id: 1\ndata: a\ndata: b\n\n", b": ping\r\n\r\n", b"data: last\r\r", b"data: x\n\n"]
    for cut in range(len(stream) + 1):
        assert units(read(EventReader(), stream[:cut], stream[cut:])) == wanted
    assert units(read(EventReader(), *(stream[n : n + 1] for n in range(len(stream))))) == wanted


def test_an_event_over_its_bound_is_refused() -> None:
    with pytest.raises(PartError):
        EventReader(100).feed(b"data: " + b"x" * 100)


def test_half_an_event_at_the_end_is_passed_on() -> None:
    assert read(EventReader(), b"data: a\n\ndata: b") == [
        Piece(Kind.UNIT, b"data: a\n\n"),
        Piece(Kind.TAIL, b"data: b"),
    ]


@pytest.mark.parametrize(
    ("value", "boundary"),
    [
        (b"multipart/x-mixed-replace; boundary=frame", b"frame"),
        (b'Multipart/X-Mixed-Replace ;BOUNDARY="a b"', b"a b"),
        (b"multipart/x-mixed-replace;charset=x;boundary=--f", b"--f"),
        (b"multipart/x-mixed-replace", None),
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
