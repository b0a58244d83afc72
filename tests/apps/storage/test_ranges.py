"""Which bytes a Range header asks for, as a table (RFC 9110 §14.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.storage.api.ranges import Span, Unsatisfiable, spans_of

WHOLE = None


@pytest.mark.parametrize(
    "header, expected",
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-99", [(0, 100)]),
        ("bytes=0-1000", [(0, 100)]),
        ("bytes=10-", [(10, 90)]),
        ("bytes=99-", [(99, 1)]),
        ("bytes=-1", [(99, 1)]),
        ("bytes=-100", [(0, 100)]),
        ("bytes=-500", [(0, 100)]),
        ("Bytes = 0-1", [(0, 2)]),
        ("bytes=0-1,5-6", [(0, 2), (5, 2)]),
        ("bytes= 5-6 , 0-1 ,", [(5, 2), (0, 2)]),
        ("bytes=0-1,500-600", [(0, 2)]),
        ("bytes=0-1,-1", [(0, 2), (99, 1)]),
        ("bytes=100-", Unsatisfiable),
        ("bytes=100-200,300-", Unsatisfiable),
        ("bytes=-0", Unsatisfiable),
        ("bytes=5-4", WHOLE),
        ("bytes=", WHOLE),
        ("bytes=,", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=0-1,x", WHOLE),
        ("bytes=0--1", WHOLE),
        ("bytes=+1-2", WHOLE),
        ("bytes=1_0-20", WHOLE),
        ("items=0-1", WHOLE),
        ("", WHOLE),
        ("bytes=0-10,5-20", WHOLE),
        ("bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(17)), WHOLE),
        ("bytes=" + "9" * 30 + "-", WHOLE),
    ],
)
def test_what_is_asked_for(header, expected):
    if expected is Unsatisfiable:
        with pytest.raises(Unsatisfiable):
            spans_of(header, 100)
        return
    found = spans_of(header, 100)
    assert (None if found is None else [(span.start, span.length) for span in found]) == expected


@given(st.text(alphabet="bytes=0123456789-, ", max_size=40), st.integers(1, 200))
def test_whatever_comes_stays_within_the_content(header, size):
    try:
        found = spans_of(header, size) or []
    except Unsatisfiable:
        return
    for span in found:
        assert span.length > 0
        assert 0 <= span.start < span.start + span.length <= size


def test_how_a_span_is_told():
    assert Span(2, 3).content_range(10) == "bytes 2-4/10"
