"""One request's state, across connections. It ends exactly once, when nobody carries it or by ``end()``.

The counting is native; here is what an author sees. Subclass it and annotate the handler's second parameter
(``request: Attach``) to give fields defaults and types.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _native

__all__ = ["Request", "Timer"]


class Timer:
    """Calls a function later, once or again and again, until ``cancel()``."""

    __slots__ = ("__weakref__", "_args", "_core", "_fn", "_handle", "_interval_s", "_request")

    def __init__(
        self,
        core: _native.Core,
        seconds: float,
        fn: Callable[..., Any],
        args: tuple[object, ...],
        *,
        every: bool = False,
        request: Request | None = None,
    ) -> None:
        self._core, self._fn, self._args, self._request = core, fn, args, request
        self._interval_s = seconds if every else None
        if request is not None:
            request.hold()
        try:
            loop = asyncio.get_running_loop()
            self._handle: asyncio.TimerHandle | None = loop.call_later(max(0.0, seconds), self._fire)
        except BaseException:
            self._release()
            raise

    def cancel(self) -> None:
        """It does not fire any more. Cancelling twice, or too late, does nothing."""
        handle, self._handle, self._interval_s = self._handle, None, None
        if handle is not None:
            handle.cancel()
            self._release()

    def _fire(self) -> None:
        self._handle = None
        if self._request is not None and self._request.ended:
            return
        if self._interval_s is not None:
            # From now, not from when it was due: a loop that was held up does not fire a burst.
            self._handle = asyncio.get_running_loop().call_later(self._interval_s, self._fire)
        if self._request is None:
            self._core.call(self._fn, *self._args)
        else:
            self._core.call(self._carry, request=self._request)

    def _carry(self) -> Any:
        """The function's coroutine carries the request until it is done."""
        try:
            result = self._fn(*self._args)
        except BaseException:
            self._release()
            raise
        if asyncio.iscoroutine(result):
            return self._finish(result)
        self._release()
        return None

    async def _finish(self, coroutine: Any) -> None:
        try:
            await coroutine
        finally:
            self._release()

    def _release(self) -> None:
        if self._request is not None:
            self._request.release()


class Request(_native.Request):
    """What belongs to one request; set any attribute. New per message, or per (connection, id) with ``request_id=``."""

    # No weak references: an object that nobody holds serves the next request too, when it is still blank.
    __slots__ = ("__dict__",)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return self.attributes()

    def after(self, seconds: float, fn: Callable[..., Any], *args: object) -> Timer:
        """Calls ``fn(*args)`` after ``seconds``, unless the request has ended; until then the timer carries it."""
        core = self.core
        if core is None:
            raise RuntimeError("this request was not made by a running VNF")
        return Timer(core, seconds, fn, args, request=self)

    if TYPE_CHECKING:  # any attribute may be set: request.a = conn

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...
