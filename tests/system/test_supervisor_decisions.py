"""What the supervisor decides, without a process."""

import pytest

from cloud.supervisor.decisions import (
    LONGEST_DELAY,
    STEADY_SECONDS,
    STOP_STAGES,
    Restarts,
    died_line,
    ending,
    gone_line,
)


def test_pauses_double_up_to_a_limit() -> None:
    restarts = Restarts()
    assert [restarts.delay(0.1) for _ in range(8)] == [0.5, 1, 2, 4, 8, LONGEST_DELAY, LONGEST_DELAY, LONGEST_DELAY]


def test_a_steady_run_starts_the_pauses_afresh() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.delay(STEADY_SECONDS - 0.1)
    assert restarts.delay(STEADY_SECONDS) == 0.5
    assert restarts.delay(1) == 1


def test_a_thousand_failures_overflow_nothing() -> None:
    restarts = Restarts(failures=5000)
    assert restarts.delay(0) == LONGEST_DELAY


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (3, "ended with status 3"),
        (-9, "was ended by SIGKILL"),
        (-200, "was ended by signal 200"),
    ],
)
def test_an_end_in_words(status: int, words: str) -> None:
    assert ending(status) == words


def test_the_lines() -> None:
    assert died_line("api", -9, 0.5) == "api was ended by SIGKILL; it is started again in 0.5 s"
    assert gone_line("agent", 3, "revoked") == "agent ended with status 3 and is not started again: revoked"


def test_stages_end_within_five_seconds_and_keep_their_order() -> None:
    times = [seconds for _, seconds in STOP_STAGES]
    assert times == sorted(times)
    assert times[-1] < 5
    order = [name for names, _ in STOP_STAGES for name in sorted(names)]
    assert order == ["agent", "api", "worker", "tunnel", "postgres", "valkey"]
