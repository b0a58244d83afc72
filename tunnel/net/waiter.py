"""A task that rests until somebody has work for it: an event without the event's cost."""

from __future__ import annotations

from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled


class Waiter:
    """Where one task waits."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Task | None = None
        """Who sits here; None while it is at work."""

    def __repr__(self) -> str:
        return "<Waiter, at rest>" if self.task is not None else "<Waiter>"

    async def park(self) -> None:
        """Wait for `wake`."""

        def abort(_: object) -> Abort:
            self.task = None
            return Abort.SUCCEEDED

        self.task = current_task()
        await wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Let it go on; nothing if nobody is there."""
        task, self.task = self.task, None
        if task is not None:
            reschedule(task)
