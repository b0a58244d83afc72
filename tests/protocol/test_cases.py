"""The test cases of yamux.md §13, by number and name, each delivered whole, byte by byte, and with a tail."""

import pytest

import tests.protocol.cases_opening
import tests.protocol.cases_streams  # noqa: F401  # entering their cases is all that is wanted
from tests.protocol.lab import DELIVERIES
from tests.protocol.table import CASES, ELSEWHERE


def test_every_case_has_its_place() -> None:
    assert sorted([*CASES, *ELSEWHERE]) == list(range(1, 65))


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("number", sorted(CASES), ids=lambda number: f"{number:02} {CASES[number][0]}")
def test_case(number: int, delivery: str) -> None:
    CASES[number][1](delivery)
