"""The threads of the API's worker, without sockets."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from cloud.server.threads import Crew

SECONDS = 30.0


def threads_of(crew: Crew) -> int:
    return crew._started


def test_what_is_given_is_done_in_its_order_by_one_thread_where_one_is_enough() -> None:
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    crew = Crew(1, done.put)
    for number in range(100):
        crew.give(number)
    assert [done.get(timeout=SECONDS) for _ in range(100)] == list(range(100))
    crew.shutdown(wait=False)


def test_each_has_a_thread_at_once_up_to_the_size_and_the_rest_wait() -> None:
    met = threading.Barrier(3, timeout=SECONDS)
    left = threading.Semaphore(0)

    def work(_item: Any) -> None:
        met.wait()
        left.release()

    crew = Crew(3, work)
    for number in range(9):
        crew.give(number)
    for _ in range(9):  # only three at once get past the barrier
        assert left.acquire(timeout=SECONDS)
    assert threads_of(crew) == 3
    crew.shutdown(wait=False)


def test_nothing_waits_for_a_thread_that_is_busy_while_more_may_be_started() -> None:
    begun: queue.SimpleQueue[Any] = queue.SimpleQueue()
    go_on = threading.Event()

    def work(item: Any) -> None:
        begun.put(item)
        assert go_on.wait(SECONDS)

    crew = Crew(8, work)
    for number in range(8):
        crew.give(number)
        assert begun.get(timeout=SECONDS) == number
    go_on.set()
    crew.shutdown(wait=False)


def test_an_idle_thread_is_used_again() -> None:
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    crew = Crew(64, done.put)
    for number in range(20):
        crew.give(number)
        assert done.get(timeout=SECONDS) == number
        until = time.monotonic() + SECONDS
        while not crew._idle:
            assert time.monotonic() < until
            time.sleep(0.001)
    assert threads_of(crew) == 1
    crew.shutdown(wait=False)


def test_its_threads_end_when_they_have_done_what_was_given() -> None:
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    before = set(threading.enumerate())
    crew = Crew(4, done.put)
    for number in range(50):
        crew.give(number)
    mine = set(threading.enumerate()) - before
    crew.shutdown(wait=False)
    for thread in mine:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert done.qsize() == 50
