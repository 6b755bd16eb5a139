"""The contract of a transport. Two keep it: ``kernel`` (sockets) and ``bypass`` (ports of the native engine).

A transport feeds native connections and knows nothing of handlers; the VNF that drives it knows nothing of sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .. import _native
from ..config import EndpointURL

__all__ = ["Transport"]


class Transport(Protocol):
    """One way in and out, of one VNF, on its loop."""

    name: str
    """The port's name; ``kernel`` for sockets."""

    carries_unix: bool
    """Whether ``unix://`` endpoints go here; where no transport says so, kernel sockets are opened for them."""

    @property
    def engine(self) -> _native.Engine | None:
        """What polls its port; None where there are no frames."""

    async def listen(self, url: EndpointURL, endpoint: _native.Endpoint) -> list[str]:
        """Serves ``endpoint`` at ``url``; returns what it listens on, as urls (port 0 resolved).

        Raises ``AddressInUse``, ``Unsupported`` or another ``TransportError``; then nothing of it listens.
        """

    def unlisten(self) -> None:
        """No new connections from now on; those that are open stay."""

    def reaches(self, host: str) -> bool:
        """Whether connections to ``host`` may go this way, where there are several."""

    def target(self, url: EndpointURL) -> Any:
        """Where connections to ``url`` go: a ``_native.Target``, or what has ``datagram`` and ``open(connection)``.

        Raises ``ConfigError`` or ``Unsupported`` when this transport cannot reach it.
        """

    def take_frames(self, connection: _native.Connection, batches: Callable[..., Any] | None) -> None:
        """Every frame of the port is for ``connection``'s handler, or many at once for ``batches``.

        ``Unsupported`` where frames do not come this way.
        """

    def describe(self) -> str:
        """For people: ``kernel``, ``memif:/run/vnf/b.sock``."""

    def statistics(self) -> dict[str, Any]:
        """Its counters, by name."""

    def close(self) -> None:
        """Everything it opened is closed, and its files are gone from the file system. Closing twice does nothing."""
