"""Body framing: chunks in and out, lengths, honest ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.helpers import DELIVERIES, Delivery, feed_all
from tunnel.http.body import LAST_CHUNK, ChunkedReader, FramingError, LengthReader, UntilCloseReader, encode_chunk


def chunked() -> ChunkedReader:
    return ChunkedReader(64, 128)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"000\r\n\r\n", b""),
        (b"2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (b'2;a="b c"\r\nhi\r\n0;x\r\n\r\n', b"hi"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"2\r\nhi\r\n0\r\nT: 1\r\nU: 2\r\n\r\n", b"hi"),
    ],
)
def test_chunks_are_taken_apart(raw: bytes, body: bytes, delivery: Delivery) -> None:
    reader = chunked()
    seen = b"".join(b"".join(reader.feed(part)) for part in delivery(raw))
    assert (seen, reader.done, bytes(reader.rest), reader.end()) == (body, True, b"", True)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    "raw",
    [
        b"zz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"+1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b" 1\r\nx\r\n",
        b"1 \r\nx\r\n",
        b"1\nx\n",
        b"1\r\nx\n",
        b"1\r\nxy\r\n",
        b"1\r\nx0\r\n\r\n",
        b"1_0\r\n",
        b"1;\0\r\n",
        b"1;a\rb\r\nx\r\n",
        b"f" * 16 + b"\r\n",
        b"1;" + b"a" * 70 + b"\r\nx\r\n",
        b"1;" + b"a" * 1000,
        b"0\r\nT: 1\n\r\n",
        b"0\r\nT: a\rb\r\n\r\n",
        b"0\r\n" + b"T: 1\r\n" * 30 + b"\r\n",
        b"0\r\n" + b"T" * 500,
    ],
)
def test_what_is_no_chunk_is_refused(raw: bytes, delivery: Delivery) -> None:
    reader = chunked()
    with pytest.raises(FramingError):
        feed_all(reader.feed, delivery(raw))
    assert not reader.done


@pytest.mark.parametrize(
    "raw", [b"", b"2", b"2\r\n", b"2\r\nhi", b"2\r\nhi\r\n", b"2\r\nhi\r\n0\r\n", b"0\r\nT: 1\r\n"]
)
def test_a_chunked_body_ends_only_with_its_last_chunk(raw: bytes) -> None:
    reader = chunked()
    if raw:
        reader.feed(raw)
    assert not reader.end()


@pytest.mark.parametrize("tail", [b"x", b"HTTP/1.1 200 OK\r\n", b"\r\n"])
def test_what_follows_is_kept_apart(tail: bytes) -> None:
    for reader, raw in ((chunked(), b"2\r\nhi\r\n0\r\n\r\n"), (LengthReader(2), b"hi")):
        assert b"".join(reader.feed(raw + tail)) == b"hi"
        assert bytes(reader.rest) == tail
        assert reader.feed(tail) == []
        assert bytes(reader.rest) == tail + tail
        assert reader.done


def test_body_bytes_are_views_of_what_came() -> None:
    data = b"xx5\r\nhello\r\n"
    (piece,) = chunked().feed(data, 2)
    assert isinstance(piece, memoryview)
    assert piece.obj is data
    assert LengthReader(12).feed(data)[0] is data
    assert UntilCloseReader().feed(data)[0] is data
    (piece,) = LengthReader(10).feed(data, 2)
    assert isinstance(piece, memoryview)
    assert piece.obj is data


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_length_is_counted(delivery: Delivery) -> None:
    reader = LengthReader(5)
    seen = b"".join(b"".join(reader.feed(part)) for part in delivery(b"hello"))
    assert (seen, reader.done) == (b"hello", True)
    short = LengthReader(6)
    short.feed(b"hello")
    assert not short.end()
    assert LengthReader(0).done


def test_until_close_ends_with_the_stream() -> None:
    reader = UntilCloseReader()
    assert reader.feed(b"abc") == [b"abc"]
    assert not reader.done
    assert reader.end()
    assert reader.done


def test_no_bytes_make_no_chunk() -> None:
    assert encode_chunk([]) == []
    assert encode_chunk([b"", memoryview(b"")]) == []


@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=8), st.data())
def test_chunks_come_back_as_they_went(groups: list[list[bytes]], data: st.DataObject) -> None:
    raw = b"".join(b"".join(encode_chunk(group)) for group in groups) + LAST_CHUNK
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    reader = chunked()
    seen = b""
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        if start != stop:
            seen += b"".join(reader.feed(raw[start:stop]))
    assert reader.done
    assert seen == b"".join(b"".join(group) for group in groups)


@given(st.binary(max_size=300), st.data())
def test_random_bytes_read_the_same_however_split(raw: bytes, data: st.DataObject) -> None:
    def outcome(parts: list[bytes]) -> tuple[bytes, bool, bytes] | None:
        reader = chunked()
        seen = b""
        try:
            for part in parts:
                if part:
                    seen += b"".join(reader.feed(part))
        except FramingError:
            return None
        return seen, reader.done, bytes(reader.rest)

    cut = data.draw(st.integers(0, len(raw)))
    assert outcome([raw]) == outcome([raw[:cut], raw[cut:]]) == outcome([raw[i : i + 1] for i in range(len(raw))])
