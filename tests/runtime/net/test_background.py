"""Work in the background: what runs, what is bounded, what a bug in one of them costs, and what comes too late."""

from __future__ import annotations

import trio
import trio.testing

from tunnel.net.background import Background


async def test_what_comes_before_or_after_its_time_is_dropped() -> None:
    """Whoever is still being cancelled may hand something over: that must not raise in its clean-up."""
    done: list[str] = []

    async def work(name: str) -> None:
        done.append(name)

    background = Background(lambda _work, _error: None)
    background.spawn(work, "early")
    async with trio.open_nursery() as nursery:
        await nursery.start(background.run)
        background.spawn(work, "in time")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    background.spawn(work, "late")
    background.attend(work, "late")
    await trio.testing.wait_all_tasks_blocked()
    assert done == ["in time"]


async def test_a_bug_in_one_costs_no_other() -> None:
    crashed: list[tuple[str, str]] = []

    async def bug() -> None:
        raise RuntimeError("a bug")

    background = Background(lambda work, error: crashed.append((work.rpartition(".")[2], str(error))))
    async with trio.open_nursery() as nursery:
        await nursery.start(background.run)
        background.spawn(bug)
        background.attend(bug)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert crashed == [("bug", "a bug")] * 2


async def test_of_what_is_spawned_so_many_run_at_once() -> None:
    running: list[str] = []

    async def work(name: str) -> None:
        running.append(name)
        await trio.sleep_forever()

    background = Background(lambda _work, _error: None, most=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(background.run)
        for number in range(3):
            background.spawn(work, f"spawned {number}")
        background.attend(work, "attended")
        await trio.testing.wait_all_tasks_blocked()
        assert len(running) == 3
        assert "attended" in running
        nursery.cancel_scope.cancel()
