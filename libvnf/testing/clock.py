"""Virtual time for asyncio's own event loop: when nothing is ready, time jumps to the next timer.

The loop asks two things of the outside world, ``loop.time()`` and ``selector.select(timeout)``; both are replaced while
the clock is installed and given back afterwards. Timers that were armed before or stay armed after keep the time they
still have to run. Time starts at 0.0, so that the same test computes the same floating-point numbers on every machine.

Real work holds time still, otherwise a timeout of ten seconds would strike before a thread had its first microsecond:

* a job given to ``run_in_executor`` (``to_thread``, name resolution) until its future is done,
* a descriptor the loop waits to *write* to (a real connection being made, bytes that must leave),
* anything done inside ``with clock.paused():``, for the answers of real sockets, subprocesses and foreign threads.

Waiting to *read* a real descriptor does not hold time: a listening socket would stop it for ever. It is polled
before each jump. What holds time is waited for at most ``patience_s`` real seconds when a timer is pending: a thread
that waits for the loop's next timer is not to hang the test.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Clock", "DeadlockError"]

_MISSING = object()
_SLICE_S = 0.05  # how long one real wait lasts before it is looked again whether it still has a reason


class DeadlockError(AssertionError):
    """Nothing can happen any more: no timer, no packet, no descriptor and no thread is left to wake anybody."""


class Clock:
    """The virtual clock of one running asyncio loop.

    ``limit_s`` bounds the virtual time a test may take: where timers re-arm themselves for ever, a test that waits in
    vain would not end otherwise.
    """

    def __init__(self, *, limit_s: float = 86400.0, patience_s: float = 5.0) -> None:
        self.limit_s = self._limit_s = limit_s
        self.patience_s = patience_s
        self.jumps = 0
        self._now = 0.0
        self._loop: Any = None
        self._owner: asyncio.Task[Any] | None = None
        self._verdict: str | None = None
        self._jobs = 0
        self._pauses = 0
        self._replaced: list[tuple[Any, str, Any]] = []

    # -- what a test uses

    @property
    def now(self) -> float:
        """Virtual seconds since the clock was installed; ``loop.time()`` while it is."""
        return self._now

    @property
    def installed(self) -> bool:
        """Whether a loop's time is this clock's now."""
        return self._loop is not None

    @property
    def verdict(self) -> str | None:
        """Why the test was stopped; None while it is fine."""
        return self._verdict

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time stands still inside: for awaiting real sockets, processes and threads the loop knows nothing of."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    # -- installing

    def install(self, owner: asyncio.Task[Any] | None = None) -> None:
        """Makes the running loop's time virtual. ``owner`` is the task told of a deadlock, by cancelling it: who turns
        that into a :class:`DeadlockError` asks :meth:`judge`. Without one (or when it is done) the loop itself
        raises.
        """
        loop: Any = asyncio.get_running_loop()
        selector = getattr(loop, "_selector", None)
        if not isinstance(loop, asyncio.BaseEventLoop) or not isinstance(selector, selectors.BaseSelector):
            kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
            raise RuntimeError(
                f"virtual time needs asyncio's own event loop, this is {kind}: run the test with plain asyncio.run(…), "
                "without uvloop.install(), uvloop.run() or a uvloop event_loop_policy fixture"
            )
        if isinstance(getattr(loop.time, "__self__", None), Clock):
            raise RuntimeError("this loop's time is virtual already: leave the other test network first")
        self._loop, self._owner, self._select = loop, owner, selector.select
        self._shift_timers(self._now - loop.time())
        self._replace(selector, "select", self._virtual_select)
        self._replace(loop, "time", self._time)
        self._run_in_executor = loop.run_in_executor
        self._replace(loop, "run_in_executor", self._counted_job)

    def uninstall(self) -> None:
        """Gives the loop its own time back. A second call does nothing."""
        if self._loop is None:
            return
        while self._replaced:
            holder, name, before = self._replaced.pop()
            delattr(holder, name) if before is _MISSING else setattr(holder, name, before)
        self._shift_timers(self._loop.time() - self._now)
        self._loop = None

    def judge(self, error: BaseException | None) -> None:
        """Raises :class:`DeadlockError` in place of the cancellation that told the owner of it."""
        if self._verdict is not None and isinstance(error, asyncio.CancelledError) and self._owner is not None:
            self._owner.uncancel()
            raise DeadlockError(self._verdict) from None

    def _replace(self, holder: Any, name: str, value: Any) -> None:
        self._replaced.append((holder, name, vars(holder).get(name, _MISSING)))
        setattr(holder, name, value)

    def _shift_timers(self, by_s: float) -> None:
        for handle in self._loop._scheduled:  # the same shift for all keeps the heap a heap
            handle._when += by_s

    # -- what the loop calls

    def _time(self) -> float:
        return self._now

    def _counted_job(self, executor: Any, fn: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._run_in_executor(executor, fn, *args)
        self._jobs += 1
        future.add_done_callback(self._job_done)
        return future

    def _job_done(self, _future: asyncio.Future[Any]) -> None:
        self._jobs -= 1

    def _virtual_select(self, timeout: float | None = None) -> list[Any]:
        events = self._select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if timeout is None:
            return self._wait_for_the_real_world() if self._may_wake() else self._condemn(self._deadlock())
        if self._holds_time():
            give_up = time.monotonic() + self.patience_s
            while not events and self._holds_time() and time.monotonic() < give_up:
                events = self._select(_SLICE_S)
            if events or not self._loop._scheduled:
                return events
        target = max(self._now, self._loop._scheduled[0].when())
        if target > self.limit_s:
            return self._condemn(f"{self.limit_s:g} s of virtual time have passed (limit_s): {self._who_waits()}")
        self._now = target
        self.jumps += 1
        return []

    def _holds_time(self) -> bool:
        return bool(self._jobs or self._pauses) or any(
            key.events & selectors.EVENT_WRITE for key in self._loop._selector.get_map().values()
        )

    def _may_wake(self) -> bool:
        own_pipe = 1
        return bool(self._jobs or self._pauses) or len(self._loop._selector.get_map()) > own_pipe

    def _wait_for_the_real_world(self) -> list[Any]:
        return self._select(None)

    # -- deadlocks

    def _deadlock(self) -> str:
        return f"deadlock: nothing is ready, no timer or packet is pending, nothing can wake: {self._who_waits()}"

    def _condemn(self, verdict: str) -> list[Any]:
        told = self._verdict is not None
        self._verdict = verdict
        self.limit_s += self._limit_s  # leaving may take its time
        if told or self._owner is None or self._owner.done():
            raise DeadlockError(verdict)
        self._owner.cancel("deadlock")
        return []

    def _who_waits(self) -> str:
        waiting = []
        for task in asyncio.all_tasks(self._loop):
            frames = task.get_stack(limit=8)
            place = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "its start"
            waiting.append(f"{task.get_name()} at {place}")
        return "; ".join(sorted(waiting)) or "no task is left"
