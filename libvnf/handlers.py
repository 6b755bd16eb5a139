"""Which handler is called with what, checked when it is registered rather than when a peer first writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import ConfigError

__all__ = ["check_arity", "check_handler"]

EVENTS: dict[str, tuple[str, ...]] = {
    "accept": ("conn", "request"),
    "data": ("conn", "request", "packet"),
    "sent": ("conn", "request"),
    "writable": ("conn", "request"),
    "end": ("conn", "request"),
    "close": ("conn", "request", "reason"),
    "error": ("conn", "request", "error"),
    "connect": ("conn", "request"),
}
"""Each event, and what its handler is called with."""


def check_arity(fn: Callable[..., Any], wanted: tuple[str, ...]) -> None:
    """Refuses a handler that cannot be called with ``wanted``: at its registration, not when a peer first writes."""
    import inspect

    if not callable(fn):
        raise ConfigError(f"{fn!r} is not a function: a handler is fn({', '.join(wanted)})")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # a builtin that does not tell
    try:
        signature.bind(*wanted)
    except TypeError:
        code = getattr(inspect.unwrap(fn), "__code__", None)
        name = getattr(fn, "__qualname__", repr(fn))
        raise ConfigError(
            f"{name}{signature} is called as {name.rpartition('.')[2]}({', '.join(wanted)})",
            file=code and code.co_filename,
            line=code and code.co_firstlineno,
        ) from None


def check_handler(event: str, fn: Callable[..., Any]) -> None:
    """Refuses a handler of ``event`` that cannot be called as such."""
    check_arity(fn, EVENTS[event])
