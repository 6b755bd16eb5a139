"""The contract between tables and a store. A store knows bytes, versions and deadlines; types and caches are above it.

Every call returns at once and its ``done`` is called exactly once, on the loop's thread, never before the call has
returned. What a call refuses outright it raises: :class:`StateFull` when too much waits already (nothing of that call
was done), :class:`StateError` after :meth:`Store.close`. Everything else comes by ``done``.

**Versions.** Each write of an entry has a number of its own: the writer's (24 bits, given by the store when it is
opened, never 0) above a sequence (40 bits), which begins anywhere: a store that has lost its count of writers, in a
failover or by FLUSHALL, may give one number to two clients, and neither must take the other's writes for its own.
Versions are compared for equality only; 0 is an absent entry. So a write that is repeated with the version it had is
recognised, and repeating it is harmless.

**Recent updates.** An entry carries the versions of the last read-modify-writes of up to ``RECENT`` different writers,
youngest first, each 8 octets, big-endian. By them a store that had no answer to an update finds out whether it was
applied. A writer has one update of a key under way at a time: that is the table's duty.

**Time** is milliseconds since 1970, the store's clock; a deadline of 0 is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

from ..errors import StateError, Unreadable

__all__ = [
    "FULL",
    "RECENT",
    "SEQUENCE_BITS",
    "WRITER_BITS",
    "Found",
    "Invalid",
    "Store",
    "Stored",
    "Versions",
    "Written",
    "carried",
]

WRITER_BITS = 24
SEQUENCE_BITS = 40
RECENT = 8
FULL = ("OOM ", "MISCONF ")
"""How the errors of a store begin that takes no changes for now: its memory is full, or its disk."""
_SEQUENCES = 1 << SEQUENCE_BITS
_STARTS = _SEQUENCES // 2  # half a year of 35,000/s is left before it begins again


class Stored(NamedTuple):
    """An entry as it stands in the store."""

    version: int
    deadline_ms: int
    recent: bytes
    """``n`` × 8 octets, ``n`` ≤ :data:`RECENT`: to be given back with a write that keeps to this entry."""
    payload: bytes


Found: TypeAlias = list[tuple[bytes, Stored | Unreadable]]
"""What a scan found: keys, and what stands there. :class:`Unreadable`: it is no entry, whoever put it there."""


Invalid: TypeAlias = list[bytes] | Callable[[bytes], bool] | None
"""Keys, or what says of a key whether it is one of them; None: all of the table."""


class Written(NamedTuple):
    """What did not go as asked, by index into the call's ``keys``; all other entries are stored."""

    conflicts: list[tuple[int, Stored | None]]
    """Another version than the expected one stands there: this one (None: the entry is absent). Nothing was changed."""
    failed: list[tuple[int, StateError]]
    """:class:`DurabilityUnknown`: it may stand, now or in a moment, or not reach as many replicas as asked.
    :class:`LockLost`: the guard's lock is no longer the owner's. :class:`Unreadable`: instead of the expected version
    something stands there that is no entry, and has none. Any error but the first: nothing was changed."""


class Store(Protocol):
    """See the module. Handlers (``on_…``) are set before :meth:`open`; unset ones do nothing."""

    writer: int
    """This client's 24 bits of every version it writes; known after :meth:`open`."""

    on_invalid: Callable[[int, Invalid], object]
    """``(table handle, keys)``: another client changed or removed these, or they expired. Told once for each key that
    this client read or wrote since, absent ones too; its own writes are not told. Not a list: whatever this client has
    read of these may be stale (a connection was lost, a slot moved). A server that remembers fewer readers than
    there are (``tracking-table-max-keys``), or that evicts entries, forgets to tell."""

    on_state: Callable[[str], object]
    """``"up"``, or ``"down: why"``: once per change, for the log and the statistics."""

    on_lock_lost: Callable[[int, bytes, int], object]
    """``(table handle, key, owner)``: a lock is no longer the owner's. Told where it is known; a guard is the proof."""

    async def open(self) -> None:
        """Returns when the store has answered, and ``writer`` is known. ``StateError`` says what is wrong when that
        does not help by waiting (password, address, a reply that is none); ``StoreUnavailable`` after the client's
        time-out. A store that goes away later is an outage, and told by ``on_state``."""

    async def close(self) -> None:
        """Waits for nothing: calls still under way end with ``DurabilityUnknown`` (writes) or ``StoreUnavailable``.
        Locks are left to their leases. A second call does nothing."""

    def table(self, name: str, *, partitions: int = 64, keeps_expired: bool = False) -> int:
        """A handle for the calls below; the same name has the same handle. ``partitions`` is part of the stored
        format: changing it loses sight of what is stored. With ``keeps_expired`` an entry outlives its deadline until
        :meth:`expired`, and is read until then: the reader compares deadlines. ``ConfigError`` when the name is known
        with other settings."""

    def read(self, table: int, keys: list[bytes], done: Callable[[list[Stored | StateError | None]], object]) -> None:
        """``done`` gets one answer per key, in their order; None is an absent entry, ``Unreadable`` what is none."""

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
        """Stores, each entry by itself, all-or-nothing per entry only. Keys are different from each other.

        ``expected``: the versions that must stand there (0: absent); None: whatever stands there is replaced.
        ``first``: entry *i* gets the version ``first + i``, used up whatever becomes of it (:class:`Versions`).
        A write whose version stands there already has succeeded: it is a repetition.
        ``payloads``: None deletes. Deleting what is absent has succeeded, whatever was expected; in an ``update`` it is
        a conflict where something was expected.
        ``deadlines``, ``recents``: None is none for all. An unconditional write without ``recents`` forgets them.
        ``update``: these are read-modify-writes, ``expected`` and the ``recents`` that were read are given. The store
        puts the new version in front (:func:`carried`), and does not apply one twice, whatever it has to repeat.
        ``replicas``: how many replicas of the node must have it before it is done; fewer: ``DurabilityUnknown``.
        ``guard``: ``(key, owner)`` of a lock that must still be held; all keys are then of that key's partition.
        """

    def scan(
        self,
        table: int,
        cursor: object,
        count: int,
        done: Callable[[object | None, Found | StateError], object],
    ) -> None:
        """About ``count`` entries (more or fewer, also none). ``cursor`` is None at first, then what ``done`` got;
        ``done`` gets None with the last ones. What stands there throughout a scan comes at least once; what changes
        meanwhile comes or not; where slots have moved it begins again, and entries come twice. After an error the
        cursor given to ``done`` is the one to try again with."""

    def drop(self, table: int, done: Callable[[StateError | None], object]) -> None:
        """Removes all entries of the table, not at one instant; the handle stays valid. Others are told by
        ``on_invalid``."""

    def claim_expired(
        self,
        table: int,
        now_ms: int,
        claim_ms: int,
        most: int,
        done: Callable[[list[tuple[bytes, Stored]] | StateError], object],
    ) -> None:
        """Of a table that keeps them: up to ``most`` entries whose deadline is at or before ``now_ms``, which no other
        client is given for ``claim_ms``, earliest deadline first. Who dies before :meth:`expired` leaves them to the
        next claim. A ``most`` below the number of partitions asks only some of them, others each time: then none does
        not mean that there are none."""

    def expired(
        self, table: int, keys: list[bytes], versions: list[int], done: Callable[[StateError | None], object]
    ) -> None:
        """The claimed entries were dealt with: removed where that version still stands; where not, the present
        deadline counts again."""

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
        """``done`` gets the fence, greater than that of every earlier owner, or None when another owner has it.
        ``owner`` is a version of its own (:class:`Versions`); asking again as the same owner renews the lease under the
        same fence, or takes the lock anew under a greater one where it was lost. The lease is renewed while
        :meth:`beat` comes, until :meth:`unlock`; and where ``hold_ms`` is given not beyond that time after the call,
        whatever the owner does."""

    def unlock(self, table: int, key: bytes, owner: int, done: Callable[[StateError | None], object]) -> None:
        """``LockLost`` when the lease had run out, or another owner has it."""

    def beat(self) -> None:
        """The loop is alive: leases are renewed as long as beats come within ``stall_limit_s``."""

    def statistics(self) -> dict[str, int]:
        """Counters by name, from zero at :meth:`open`; gauges end in ``_now``."""


class Versions:
    """The numbers of one client's writes, each given out once. ``chance``, from 0 to less than 1: where in the first
    half of the sequence it begins."""

    def __init__(self, writer: int, chance: float = 0.0) -> None:
        if not 0 < writer < 1 << WRITER_BITS:
            raise ValueError(f"writer {writer}, expected 1…{(1 << WRITER_BITS) - 1}")
        self._base = writer << SEQUENCE_BITS
        self._start = self._next = 1 + int(chance * _STARTS)

    def take(self, count: int = 1) -> int:
        """The first of ``count`` consecutive versions."""
        first = self._next
        if first + count > _SEQUENCES:
            first = 1
        self._next = first + count
        return self._base | first

    def took(self, version: int) -> bool:
        """Whether it is one of those given out."""
        sequence = version - self._base
        taken = (self._next - self._start) % _SEQUENCES
        return 0 < sequence < _SEQUENCES and (sequence - self._start) % _SEQUENCES < taken


def carried(recent: bytes, version: int) -> bytes:
    """``recent`` after the update ``version``: in front, without its writer's older one, the youngest ``RECENT``."""
    own = version.to_bytes(8, "big")
    writer = own[: WRITER_BITS // 8]
    if not recent or (len(recent) == 8 and recent.startswith(writer)):
        return own  # nobody else's
    others = (recent[at : at + 8] for at in range(0, len(recent), 8))
    kept = [one for one in others if not one.startswith(writer)]
    return own + b"".join(kept[: RECENT - 1])
