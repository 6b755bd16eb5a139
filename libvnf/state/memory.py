"""The store contract within one process: for one replica without a store, and for tests with several.

A :class:`Memory` is what a server holds; a :class:`MemoryStore` is one client of it, with a connection that can fail.
Both take the time and the loop as arguments. All happens in order, on the loop: a call waits its ``latency_s`` on the
wire, is carried out, and answered at once. In an outage calls wait until it is over or their time is up.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from ..errors import ConfigError, DurabilityUnknown, LockLost, StateError, StateFull, StoreUnavailable
from .store import WRITER_BITS, Found, Invalid, Stored, Written, carried

__all__ = ["Loop", "Memory", "MemoryStore"]

_ROUNDING_S = 1e-9  # a timer may come this much before its time, and a shorter wait than this may be none


class Loop(Protocol):
    """What of an event loop is needed."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callable[[], object], /) -> Any: ...
    def call_later(self, delay: float, callback: Callable[[], object], /) -> Any: ...


@dataclass(slots=True)
class _Lock:
    owner: int
    client: MemoryStore
    lease_ms: int
    since_ms: int
    until_ms: int
    fence: int


@dataclass(slots=True, eq=False)
class _Table:
    handle: int
    name: str
    partitions: int
    keeps_expired: bool
    entries: dict[bytes, Stored] = field(default_factory=dict)
    dues: list[tuple[int, bytes]] = field(default_factory=list)  # a heap; what is no longer true is passed over
    claims: dict[bytes, int] = field(default_factory=dict)  # expired, and given to nobody else before this time
    locks: dict[bytes, _Lock] = field(default_factory=dict)
    fence: int = 0
    readers: dict[bytes, set[MemoryStore]] = field(default_factory=dict)  # to be told of the next change


class Memory:
    """What the clients of one store share. Who is to be told of a key is kept without a bound, and only when there is
    more than one client: in tests. ``clock()`` is milliseconds since 1970; ``replicas`` how many copies a
    write with ``replicas=`` finds."""

    def __init__(self, clock: Callable[[], int], *, replicas: int = 0) -> None:
        self.clock, self.replicas = clock, replicas
        # Changes that no write has waited for to reach a replica, and what stood there before. None: nobody asks.
        self.unreplicated: deque[tuple[_Table, bytes, Stored | None]] | None = None
        self.tables: list[_Table] = []
        self.clients: set[MemoryStore] = set()
        self.writers = 0

    def join(self, client: MemoryStore) -> int:
        """The client's writer number. A single client has nobody to hear of, so what it read before is not known."""
        if len(self.clients) == 1:
            for other in self.clients:
                other.told_of_all()
        self.clients.add(client)
        self.writers = self.writers % ((1 << WRITER_BITS) - 1) + 1
        return self.writers

    def leave(self, client: MemoryStore) -> None:
        self.clients.discard(client)
        self.deafen(client)

    def deafen(self, client: MemoryStore) -> None:
        """It is not told of changes to what it has read so far."""
        for table in self.tables:
            for readers in table.readers.values():
                readers.discard(client)

    def table(self, name: str, partitions: int, keeps_expired: bool) -> int:
        for known in self.tables:
            if known.name == name:
                if (known.partitions, known.keeps_expired) != (partitions, keeps_expired):
                    raise ConfigError(
                        f"table {name!r}: partitions={partitions}, keeps_expired={keeps_expired}, known with "
                        f"partitions={known.partitions}, keeps_expired={known.keeps_expired}"
                    )
                return known.handle
        self.tables.append(_Table(len(self.tables), name, partitions, keeps_expired))
        return len(self.tables) - 1

    def read(self, table: _Table, key: bytes, by: MemoryStore) -> Stored | None:
        """``by`` is told of the next change."""
        if len(self.clients) > 1:
            table.readers.setdefault(key, set()).add(by)
        return table.entries.get(key)

    def set(self, table: _Table, key: bytes, stored: Stored | None, by: MemoryStore | None) -> None:
        if self.unreplicated is not None:
            self.unreplicated.append((table, key, table.entries.get(key)))
        table.claims.pop(key, None)
        if stored is None:
            table.entries.pop(key, None)
        else:
            table.entries[key] = stored
            self.due(table, key, stored.deadline_ms)
        for reader in table.readers.pop(key, ()):
            if reader is not by:
                reader.told(table.handle, [key])
        if by is not None and len(self.clients) > 1:
            table.readers[key] = {by}

    def replicated(self) -> None:
        """A write was waited for: a replica has it, and what came before it."""
        if self.unreplicated is not None:
            self.unreplicated.clear()

    def forget(self, changes: int) -> None:
        """The last ``changes`` have not reached a replica, and it takes over. Who has read them is told."""
        log, self.unreplicated = self.unreplicated or deque(), None
        for _ in range(min(changes, len(log))):
            self.set(*log.pop(), None)
        log.clear()
        self.unreplicated = log

    def due(self, table: _Table, key: bytes, at_ms: int) -> None:
        if not at_ms:
            return
        heapq.heappush(table.dues, (at_ms, key))
        if len(table.dues) > 2 * len(table.entries) + 1024:
            true = {key: table.claims.get(key, stored.deadline_ms) for key, stored in table.entries.items()}
            table.dues = [(at_ms, key) for key, at_ms in true.items() if at_ms]
            heapq.heapify(table.dues)

    def take_due(self, table: _Table, now_ms: int) -> tuple[bytes, Stored] | None:
        """The entry whose time came first, if it has come."""
        while table.dues and table.dues[0][0] <= now_ms:
            at_ms, key = heapq.heappop(table.dues)
            stored = table.entries.get(key)
            if stored is not None and table.claims.get(key, stored.deadline_ms) == at_ms:
                return key, stored
        return None

    def expire(self, table: _Table) -> None:
        while not table.keeps_expired and (due := self.take_due(table, self.clock())):
            self.set(table, due[0], None, None)


class _Call(NamedTuple):
    due_s: float
    until_s: float
    entries: int
    carry_out: Callable[[], object]
    fail: Callable[[StateError], object]


class MemoryStore:
    """One client. ``timeout_s``: how long a call waits in an outage; ``max_waiting`` entries of calls wait, then
    ``StateFull``."""

    def __init__(
        self,
        memory: Memory,
        loop: Loop,
        *,
        timeout_s: float = 10.0,
        stall_limit_s: float = 120.0,
        max_waiting: int = 1 << 20,
    ) -> None:
        self.writer = 0
        self.on_invalid: Callable[[int, Invalid], object] = lambda table, keys: None
        self.on_state: Callable[[str], object] = lambda state: None
        self.on_lock_lost: Callable[[int, bytes, int], object] = lambda table, key, owner: None
        self._memory, self._loop, self._timeout_s, self._max_waiting = memory, loop, timeout_s, max_waiting
        self._stall_ms = round(stall_limit_s * 1000)
        self._beat_ms = 0
        self._latency_s = self._answers_s = 0.0
        self._down = ""
        self._closed = False
        self._lost_answers = self._refusals = 0
        self._refusal: StateError = StoreUnavailable("")
        self._wire: deque[_Call] = deque()
        self._waiting = 0
        self._armed = False
        self._counts = dict.fromkeys(("reads", "writes", "conflicts", "invalidations", "timeouts", "refused"), 0)

    # -- faults, for tests

    def outage(self, why: str = "the store is down") -> None:
        """Nothing is answered from here on, and this client hears no more of what others change: ``on_invalid`` with
        None says so at once."""
        if not self._down:
            self._renew()
            self._down = why
            self._memory.deafen(self)
            self.on_state(f"down: {why}")
            self.told_of_all()

    def recover(self) -> None:
        """The end of an outage: what still waits is carried out."""
        if self._down:
            self._renew()
            self._down = ""
            self.on_state("up")
            self._arm(0.0)

    def slow(self, latency_s: float, *, answers_s: float = 0.0) -> None:
        """Every call from now on takes that long; 0 ends it. ``answers_s``: and then its answer, once it is carried
        out; what is told of others' changes overtakes it, as it does where an answer waits for several nodes."""
        self._latency_s, self._answers_s = latency_s, answers_s

    def lose_answers(self, calls: int) -> None:
        """The next ``calls`` writes are carried out, and answered with ``DurabilityUnknown``."""
        self._lost_answers = calls

    def refuse(self, calls: int, error: StateError) -> None:
        """The next ``calls`` are answered with this error, and not carried out."""
        self._refusals, self._refusal = calls, error

    # -- the contract

    async def open(self) -> None:
        if self._down:
            raise StoreUnavailable(self._down)
        self.writer = self._memory.join(self)
        self.on_state("up")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._memory.leave(self)
            self._loop.call_soon(self._run)

    def table(self, name: str, *, partitions: int = 64, keeps_expired: bool = False) -> int:
        return self._memory.table(name, partitions, keeps_expired)

    def read(self, table: int, keys: list[bytes], done: Callable[[list[Stored | StateError | None]], object]) -> None:
        done = self._late(done)
        held, memory = self._memory.tables[table], self._memory

        def carry_out() -> None:
            memory.expire(held)
            self._counts["reads"] += len(keys)
            done([memory.read(held, key, self) for key in keys])

        self._call(len(keys), carry_out, lambda error: done([error for _ in keys]))

    def write(
        self,
        table: int,
        keys: list[bytes],
        expected: list[int] | None,
        first: int,
        payloads: list[bytes | None],
        done: Callable[[Written], object],
        *,
        deadlines: list[int] | None = None,
        recents: list[bytes] | None = None,
        update: bool = False,
        replicas: int = 0,
        guard: tuple[bytes, int] | None = None,
    ) -> None:
        done = self._late(done)
        held = self._memory.tables[table]

        def all_failed(error: StateError) -> None:
            done(Written([], [(at, error) for at in range(len(keys))]))

        def carry_out() -> None:
            self._memory.expire(held)
            if guard is not None and not self._holds(held, *guard):
                all_failed(LockLost(f"table {held.name!r}: the lock was lost"))
                return
            self._counts["writes"] += len(keys)
            conflicts: list[tuple[int, Stored | None]] = []
            for at, key in enumerate(keys):
                recent = recents[at] if recents else b""
                stored = self._put(
                    held,
                    key,
                    None if expected is None else expected[at],
                    first + at,
                    payloads[at],
                    deadlines[at] if deadlines else 0,
                    carried(recent, first + at) if update else recent,
                    update,
                )
                if stored is not True:
                    conflicts.append((at, stored))
            self._counts["conflicts"] += len(conflicts)
            if self._lost_answers:
                self._lost_answers -= 1
                all_failed(DurabilityUnknown("the answer was lost"))
                return
            failed: list[tuple[int, StateError]] = []
            if replicas > self._memory.replicas:
                why = f"{self._memory.replicas} replicas have it, {replicas} were asked for"
                lost = {at for at, _ in conflicts}
                failed = [(at, DurabilityUnknown(why)) for at in range(len(keys)) if at not in lost]
            elif replicas:
                self._memory.replicated()
            done(Written(conflicts, failed))

        self._call(len(keys), carry_out, all_failed)

    def _put(
        self,
        table: _Table,
        key: bytes,
        expected: int | None,
        version: int,
        payload: bytes | None,
        deadline_ms: int,
        recent: bytes,
        update: bool,
    ) -> Stored | Literal[True] | None:
        """True, or what stands there instead."""
        stored = self._memory.read(table, key, self)
        if payload is None and stored is None and not update:
            return True
        if stored is not None and stored.version == version:
            return True
        if expected is not None and (0 if stored is None else stored.version) != expected:
            return stored
        self._memory.set(table, key, None if payload is None else Stored(version, deadline_ms, recent, payload), self)
        return True

    def scan(
        self,
        table: int,
        cursor: object,
        count: int,
        done: Callable[[object | None, Found | StateError], object],
    ) -> None:
        done = self._late(done)
        held = self._memory.tables[table]

        def carry_out() -> None:
            self._memory.expire(held)
            keys = cursor if isinstance(cursor, deque) else deque(held.entries)
            some = [keys.popleft() for _ in range(min(max(count, 1), len(keys)))]
            done(keys or None, [(key, held.entries[key]) for key in some if key in held.entries])

        self._call(1, carry_out, lambda error: done(cursor, error))

    def drop(self, table: int, done: Callable[[StateError | None], object]) -> None:
        done = self._late(done)
        held = self._memory.tables[table]

        def carry_out() -> None:
            for key in list(held.entries):
                self._memory.set(held, key, None, self)
            done(None)

        self._call(1, carry_out, done)

    def claim_expired(
        self,
        table: int,
        now_ms: int,
        claim_ms: int,
        most: int,
        done: Callable[[list[tuple[bytes, Stored]] | StateError], object],
    ) -> None:
        done = self._late(done)
        held = self._memory.tables[table]

        def carry_out() -> None:
            claimed: list[tuple[bytes, Stored]] = []
            while len(claimed) < most and (due := self._memory.take_due(held, now_ms)):
                claimed.append(due)
                held.claims[due[0]] = now_ms + claim_ms  # at once: the same deadline may stand there twice
            for key, _ in claimed:
                self._memory.due(held, key, now_ms + claim_ms)
            done(claimed)

        self._call(1, carry_out, done)

    def expired(
        self, table: int, keys: list[bytes], versions: list[int], done: Callable[[StateError | None], object]
    ) -> None:
        done = self._late(done)
        held = self._memory.tables[table]

        def carry_out() -> None:
            for key, version in zip(keys, versions, strict=True):
                stored = held.entries.get(key)
                if stored is None:
                    continue
                if stored.version == version:
                    self._memory.set(held, key, None, self)
                elif held.claims.pop(key, None) is not None:
                    self._memory.due(held, key, stored.deadline_ms)
            done(None)

        self._call(len(keys), carry_out, done)

    def lock(
        self,
        table: int,
        key: bytes,
        owner: int,
        lease_ms: int,
        done: Callable[[int | StateError | None], object],
        *,
        hold_ms: int = 0,
    ) -> None:
        done = self._late(done)
        held = self._memory.tables[table]
        until_ms = self._memory.clock() + hold_ms if hold_ms else 1 << 63

        def carry_out() -> None:
            self.beat()
            lock = self._standing(held, key)
            if lock is not None and lock.owner != owner:
                done(None)
                return
            if lock is None:
                held.fence += 1
                lock = held.locks[key] = _Lock(owner, self, lease_ms, 0, until_ms, held.fence)
            lock.since_ms, lock.lease_ms = self._memory.clock(), lease_ms
            done(lock.fence)

        self._call(1, carry_out, done)

    def unlock(self, table: int, key: bytes, owner: int, done: Callable[[StateError | None], object]) -> None:
        done = self._late(done)
        held = self._memory.tables[table]

        def carry_out() -> None:
            if not self._holds(held, key, owner):
                done(LockLost(f"table {held.name!r}: the lock was lost"))
                return
            del held.locks[key]
            done(None)

        self._call(1, carry_out, done)

    def beat(self) -> None:
        self._renew()
        self._beat_ms = self._memory.clock()

    def statistics(self) -> dict[str, int]:
        return {**self._counts, "waiting_now": self._waiting}

    # -- inside

    def _late(self, done: Callable[..., object]) -> Callable[..., object]:
        delay_s = self._answers_s
        return (lambda *answer: self._loop.call_later(delay_s, partial(done, *answer))) if delay_s else done

    def _call(self, entries: int, carry_out: Callable[[], object], fail: Callable[[StateError], object]) -> None:
        if self._closed:
            raise StateError("the store is closed")
        if self._waiting + entries > self._max_waiting:
            raise StateFull(f"{self._waiting} entries wait for the store, at most {self._max_waiting}")
        now_s = self._loop.time()
        self._wire.append(_Call(now_s + self._latency_s, now_s + self._timeout_s, entries, carry_out, fail))
        self._waiting += entries
        if not self._armed:
            self._arm(self._latency_s)

    def _arm(self, delay_s: float) -> None:
        self._armed = True
        if delay_s > 0:
            self._loop.call_later(delay_s, self._run)
        else:
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        """What is due, of the calls that are there now: those that their ``done`` makes come in the next turn."""
        self._armed = False
        try:
            for _ in range(len(self._wire)):
                call, now_s = self._wire[0], self._loop.time() + _ROUNDING_S
                error: StateError | None = None
                if self._closed:
                    error = StoreUnavailable("the store is closed")
                elif call.until_s <= now_s:
                    error = StoreUnavailable(self._down or f"no answer within {self._timeout_s} s")
                    self._counts["timeouts"] += 1
                elif self._down or call.due_s > now_s:
                    break
                elif self._refusals:
                    error = self._refusal
                    self._refusals -= 1
                    self._counts["refused"] += 1
                self._wire.popleft()
                self._waiting -= call.entries
                if error is None:
                    call.carry_out()
                else:
                    call.fail(error)
        finally:
            if self._wire and not self._armed:
                head = self._wire[0]
                at_s = head.until_s if self._down else min(head.due_s, head.until_s)
                self._arm(at_s - self._loop.time())

    def told_of_all(self) -> None:
        """Whatever this client has read may be stale."""
        for table in self._memory.tables:
            self._loop.call_soon(partial(self._tell, table.handle, None))

    def told(self, table: int, keys: list[bytes]) -> None:
        """Another client changed these. On the loop, as everything that comes from a store."""
        self._counts["invalidations"] += len(keys)
        self._loop.call_soon(partial(self._tell, table, keys))

    def _tell(self, table: int, keys: list[bytes] | None) -> None:
        if not self._closed:
            self.on_invalid(table, keys)

    def _renew(self) -> None:
        """Before it changes whether this client's leases are renewed: up to now they were as before."""
        for table in self._memory.tables:
            for key in [key for key, lock in table.locks.items() if lock.client is self]:
                self._standing(table, key)

    def _standing(self, table: _Table, key: bytes) -> _Lock | None:
        """The key's lock, if its lease holds: renewed natively until its client stalled, closed or was cut off."""
        lock = table.locks.get(key)
        if lock is None:
            return None
        client, now_ms = lock.client, self._memory.clock()
        if not client._closed and not client._down:
            lock.since_ms = max(lock.since_ms, min(now_ms, client._beat_ms + client._stall_ms))
        if now_ms < min(lock.since_ms + lock.lease_ms, lock.until_ms):
            return lock
        del table.locks[key]
        return None

    def _holds(self, table: _Table, key: bytes, owner: int) -> bool:
        lock = self._standing(table, key)
        return lock is not None and lock.owner == owner
