"""What becomes of an answer that comes by a ``done``: nothing, or the result of a future somebody may wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

    from ..errors import StateError

__all__ = ["ignore", "settle", "settle_pair", "settle_with"]

T = TypeVar("T")


def ignore(*_: object) -> None:
    """Whom it concerns is told otherwise: handlers, statistics, who asks next."""


def settle(future: asyncio.Future[None], error: StateError | None) -> None:
    settle_with(future, None, error)


def settle_with(future: asyncio.Future[T], answer: T, error: StateError | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)


def settle_pair(future: asyncio.Future[Any], first: object, second: object) -> None:
    settle_with(future, (first, second))
