"""``net.store``: the store that all VNFs of a network share, and what befalls it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..errors import ConfigError
from ..state.memory import Memory, MemoryStore

__all__ = ["SharedStore"]


class SharedStore:
    """In memory, in the network's time. ``replicas`` are how many ``replicated(n)`` finds."""

    def __init__(self, clock_ms: Callable[[], int], *, replicas: int = 0) -> None:
        self._memory = Memory(clock_ms, replicas=replicas)
        self._memory.unreplicated = deque(maxlen=4096)
        self._clients: list[MemoryStore] = []
        self._down = ""
        self._latency_s = 0.0

    def client(self) -> MemoryStore:
        """One VNF's."""
        client = MemoryStore(self._memory, asyncio.get_running_loop())
        client.slow(self._latency_s)
        if self._down:
            client.outage(self._down)
        self._clients.append(client)
        return client

    @property
    def replicas(self) -> int:
        """How many ``replicated(n)`` finds."""
        return self._memory.replicas

    @replicas.setter
    def replicas(self, replicas: int) -> None:
        self._memory.replicas = replicas

    def outage(self, seconds: float | None = None, why: str = "an outage of the test") -> None:
        """Nobody is answered for so long, or until :meth:`recover`."""
        self._down = why
        for client in self._clients:
            client.outage(why)
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.recover)

    def recover(self) -> None:
        """Ends an outage: what still waits is carried out."""
        self._down = ""
        for client in self._clients:
            client.recover()

    def fail_over(self, seconds: float = 1.5, *, loses: int = 0) -> None:
        """The master dies and its replica takes over: an outage of so long, and the last ``loses`` changes are
        forgotten, as far as no ``replicated(n)`` has waited for them or for a later one (of the last 4,096)."""
        if not self.replicas:
            raise ConfigError("fail_over: there is no replica to take over: net.store.replicas is 0")
        self.outage(seconds, "its master has died")
        self._memory.forget(loses)

    def slow(self, latency_s: float) -> None:
        """Every call from now on takes that long."""
        self._latency_s = latency_s
        for client in self._clients:
            client.slow(latency_s)

    def lose_answers(self, calls: int) -> None:
        """The next so many writes of each VNF are carried out, and the VNF does not learn it."""
        for client in self._clients:
            client.lose_answers(calls)
