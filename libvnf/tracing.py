"""The stream behind ``vnf trace``: what the engine has traced, given on every few milliseconds, until all is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from . import _native
from .control import Answer
from .errors import VNFError

__all__ = ["Trace"]

LOOK_S = 0.02
LONGEST_S = 600.0
"""A trace slows the VNF down: nobody forgets one for ever."""


class Trace:
    """One trace of one engine; a :class:`~libvnf.control.Stream`.

    ``asked`` has ``count`` and ``match``, as ``_native.trace_start`` takes them. ``VNFError`` says why it cannot be.
    """

    def __init__(self, engine: _native.Engine | None, asked: Mapping[str, Any]) -> None:
        if engine is None:
            raise VNFError("no port of it to trace: what comes over kernel sockets, tcpdump shows")
        count, match = asked.get("count"), asked.get("match", {})
        try:
            _native.trace_start(engine, count, match)  # type: ignore[arg-type]  # checked there
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise VNFError(str(error)) from None
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + LONGEST_S
        self._later: asyncio.TimerHandle | None = None

    def start(self, item: Callable[[Answer], None], end: Callable[[Answer], None]) -> None:
        def look() -> None:
            traced, left, looked_at = _native.trace_take(self._engine)
            for one in traced:
                item(one)
            if self._later is None:
                return  # nobody listens any more
            if left and self._loop.time() < self._until:
                self._later = self._loop.call_later(LOOK_S, look)
            else:
                end({"frames": looked_at, "missing": left})

        self._later = self._loop.call_later(LOOK_S, look)

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        _native.trace_stop(self._engine)
