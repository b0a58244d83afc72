"""Records of `POST /internal/exchange`: whatever the pieces they come in, the same is read, with linear work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.contract import (
    ABORT,
    ACCEPTED,
    BEGIN,
    DATA,
    END,
    EOF,
    RECORD_MAX,
    RecordError,
    RecordReader,
    begin_record,
    record,
    record_header,
    split_begin,
)

_RECORDS = st.lists(st.tuples(st.sampled_from((BEGIN, DATA, EOF, ABORT, ACCEPTED, END)), st.binary(max_size=300)))


def _joined(found: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """`DATA` that follows `DATA` is one: its pieces are nobody's business."""
    whole: list[tuple[int, bytes]] = []
    for kind, payload in found:
        if kind == DATA and whole and whole[-1][0] == DATA:
            whole[-1] = (DATA, whole[-1][1] + payload)
        else:
            whole.append((kind, payload))
    return whole


@given(_RECORDS, st.lists(st.integers(1, 40), min_size=1))
def test_whatever_the_pieces_the_same_is_read(records: list[tuple[int, bytes]], sizes: list[int]) -> None:
    raw = b"".join(record(kind, payload) for kind, payload in records)
    reader, found, at, turn = RecordReader(), [], 0, 0
    while at < len(raw):
        size = sizes[turn % len(sizes)]
        found += reader.feed(raw[at : at + size])
        at, turn = at + size, turn + 1
    assert _joined(found) == _joined([(kind, payload) for kind, payload in records if payload or kind != DATA])


def test_data_is_passed_on_before_it_is_whole() -> None:
    reader = RecordReader()
    assert reader.feed(record_header(DATA, 1 << 23) + b"begin") == [(DATA, b"begin")]
    assert reader.feed(b"more") == [(DATA, b"more")]


def test_a_call_comes_apart_as_it_was_put_together() -> None:
    [(kind, payload)] = RecordReader().feed(begin_record(b'{"a":1}', b"GET / HTTP/1.1\r\n\r\n"))
    assert (kind, split_begin(payload)) == (BEGIN, (b'{"a":1}', b"GET / HTTP/1.1\r\n\r\n"))


@pytest.mark.parametrize("raw", [b"\x00\x00\x00\x00", b"\x07\x00\x00\x00", record_header(BEGIN, RECORD_MAX + 1)])
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordError):
        RecordReader().feed(raw)


def test_what_is_too_long_is_not_written() -> None:
    with pytest.raises(RecordError):
        record_header(DATA, 1 << 24)
    with pytest.raises(RecordError):
        begin_record(b"", bytes(RECORD_MAX))
    with pytest.raises(RecordError):
        split_begin(b"\x00\x00\x00\x09{}")


def test_a_long_record_in_single_bytes_is_joined_once() -> None:
    reader, raw = RecordReader(), record(END, bytes(RECORD_MAX))
    found: list[tuple[int, bytes]] = []
    for index in range(len(raw)):
        found += reader.feed(raw[index : index + 1])
    assert found == [(END, bytes(RECORD_MAX))]
