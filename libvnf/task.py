"""The current task of handlers that have none.

A handler's coroutine takes its first step without an :class:`asyncio.Task`; most end there. While it does, a stand-in
is the loop's current task, so that ``asyncio.timeout`` and ``TaskGroup`` find one. If the coroutine waits and has kept
the stand-in, the stand-in becomes the face of the real task.
"""

import asyncio
from asyncio import tasks
from typing import Any

__all__ = ["StandIn", "current", "is_same", "running", "swap_current_task"]

_running: set[asyncio.Task[Any]] = set()


class StandIn:
    """What ``asyncio.current_task()`` answers in the first step of a handler."""

    __slots__ = ("_cancels", "_kept", "_message", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._cancels = 0
        self._message: object = None
        self._kept: StandIn | None = None

    def become(self, task: asyncio.Task[Any]) -> None:
        """From now on it speaks for ``task``; what was cancelled before is cancelled there."""
        self._task, self._kept = task, None
        for _ in range(self._cancels):
            task.cancel(self._message)

    def cancel(self, msg: object = None) -> bool:
        if self._task is not None:
            return self._task.cancel(msg)
        self._cancels += 1
        # Somebody keeps it, which is how the batch knows that it cannot stand in for the next handler.
        self._message, self._kept = msg, self
        return True

    def uncancel(self) -> int:
        if self._task is not None:
            return self._task.uncancel()
        self._cancels = max(0, self._cancels - 1)
        return self._cancels

    def cancelling(self) -> int:
        return self._cancels if self._task is None else self._task.cancelling()

    def __getattr__(self, name: str) -> Any:
        if self._task is None:
            raise AttributeError(f"{name}: a handler that has not waited yet has no asyncio.Task")
        return getattr(self._task, name)


def current() -> object | None:
    """Who runs: a task or what stands in for one; None: a callback. Kept, it goes on meaning that coroutine."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # stepped by hand, without a loop
        return None


def is_same(one: object | None, other: object | None) -> bool:
    """Whether both are the same coroutine, one of them perhaps by its stand-in."""

    def face(of: object | None) -> object | None:
        return of._task or of if isinstance(of, StandIn) else of

    return one is not None and face(one) is face(other)


def swap_current_task(loop: asyncio.AbstractEventLoop, task: Any) -> Any:
    """Makes ``task`` (None: nobody) the current task of ``loop``; returns the one before."""
    before = tasks.current_task(loop)
    if before is not None:
        tasks._leave_task(loop, before)
    if task is not None:
        tasks._enter_task(loop, task)
    return before


def running(task: asyncio.Task[Any]) -> None:
    """Keeps ``task`` alive until it is done; asyncio itself does not."""
    _running.add(task)
    task.add_done_callback(_running.discard)
