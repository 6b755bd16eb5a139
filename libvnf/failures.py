"""Reports what handlers raise: the first of a cause with its traceback, then at most one line a second per cause.

A peer that makes a handler raise must not be able to fill a disk.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import OrderedDict
from typing import Any

__all__ = ["Reporter"]

CAUSES = 256
INTERVAL_S = 1.0


class Reporter:
    """Counts all, logs few. A cause is the type and the line that raised."""

    def __init__(self, log: logging.Logger, clock: Any = time.monotonic) -> None:
        self.count = 0
        self._log, self._clock = log, clock
        self._causes: OrderedDict[tuple[str, str, int], tuple[float, int]] = OrderedDict()

    def report(self, connection: Any, request: Any, error: BaseException) -> None:
        where = _where(connection, request)
        if connection is not None and connection.closed and isinstance(error, ConnectionError):
            # The handler's own connection has gone under it: that is how it ends, and nothing to mend.
            self._log.debug("%s%s", where, error)
            return
        self.count += 1
        cause = _cause(error)
        now = self._clock()
        if cause not in self._causes:
            if len(self._causes) >= CAUSES:
                self._causes.popitem(last=False)
            self._causes[cause] = (now, 0)
            # As text: a record that held the traceback would hold the handler's packets and connections too.
            text = "".join(traceback.format_exception(error)).rstrip()
            self._log.error("%s%s\n%s", where, str(error) or type(error).__name__, text)
            return
        last, held_back = self._causes[cause]
        self._causes.move_to_end(cause)
        if now - last < INTERVAL_S:
            self._causes[cause] = (last, held_back + 1)
            return
        self._causes[cause] = (now, 0)
        name, file, line = cause
        self._log.error("%s%s: %s (%s:%d, %d more like it)", where, name, str(error), file, line, held_back)


def _cause(error: BaseException) -> tuple[str, str, int]:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__, "", 0
    return type(error).__name__, trace.tb_frame.f_code.co_filename, trace.tb_lineno


def _where(connection: Any, request: Any) -> str:
    parts = []
    if connection is not None:
        parts.append(f"{connection.remote or 'not connected'} at {connection.endpoint.name}")
    if request is not None and request.id is not None:
        parts.append(f"request {request.id!r}")
    return ", ".join(parts) + ": " if parts else ""
