"""What one replica holds of one table. No I/O, no clock: the table moves entries between here and the store.

An entry is in one of four states:

* **clean**: the store has it. It may be evicted, and an invalidation removes it. ``value`` None: known to be absent.
* **dirty**: it waits, about in the order of first change, until it is taken. ``value`` None: to be deleted.
* **flying**: taken, and on its way to the store.
* **flying and changed**: what flies is not the newest. Whatever becomes of it, the entry is dirty afterwards.

Neither dirty nor flying ones are ever evicted: :class:`StateFull` when there is no room besides them.

The **base** of an entry is the version its value replaces in the store. One that was put without having been read has
none (``UNKNOWN``); whoever takes it reads first, or writes unconditionally.

A flight whose outcome nobody knows may have arrived. So a conflict with a version of our own, or with nothing where we
may have deleted, is none; nor is one with nothing where the base has expired: :meth:`Cache.conflicted` bases the entry
on that and it flies again.

Eviction is CLOCK (second chance): a hit costs one flag, not a move in a list, and a scan over many keys does not push
out those in use. Only clean entries are in the ring; one that the hand dropped as dirty comes back when it is clean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ..errors import StateError, StateFull
from .store import Stored

__all__ = ["ENTRY_BYTES", "UNKNOWN", "Cache", "Entry"]

K = TypeVar("K")
V = TypeVar("V")

ENTRY_BYTES = 400
"""What an entry counts besides its packed key and value: about what the objects of a small one take."""

UNKNOWN = -1
"""The version of an entry that was put without knowing what it replaces."""

CLOCKS_DIFFER_MS = 1000
"""How far the store's clock may be ahead of ours, so that it has ended what we think is still there."""

_SPARED = 64  # entries given a second chance in one search for room: the next goes without, so that no put takes long


class Entry(Generic[K, V]):
    """Read by all, written by its :class:`Cache`."""

    __slots__ = (
        "base_until_ms",
        "cached",
        "changed",
        "deadline_ms",
        "deleting",
        "dirty",
        "flying",
        "flying_until_ms",
        "key",
        "maybe_deleted",
        "packed",
        "payload",
        "pinned",
        "queued",
        "recent",
        "size",
        "stale",
        "value",
        "version",
        "visited",
    )

    def __init__(self, key: K, packed: bytes) -> None:
        self.key, self.packed = key, packed
        self.value: V | None = None
        self.payload: bytes | None = None
        self.version = 0  # the base
        self.deadline_ms = 0
        # When what this replaces will have expired in the store, and what flies, once it is not the newest; 0: never.
        self.base_until_ms = self.flying_until_ms = 0
        self.recent = b""
        self.dirty = self.flying = self.changed = False
        self.stale = False  # somebody else wrote while it was flying
        self.deleting = self.maybe_deleted = False  # what flies is a delete; one that did has had no answer
        self.pinned = self.visited = False
        self.cached = True  # False once it is no longer in the cache, or never was
        self.queued = False  # in the ring
        self.size = 0


class Cache(Generic[K, V]):
    """Holds at most ``max_entries``, and ``max_bytes`` of packed keys and values with :data:`ENTRY_BYTES` for each.
    ``is_ours`` tells whether a version is this client's, once there is a store."""

    def __init__(
        self, max_entries: int, max_bytes: int, is_ours: Callable[[int], bool] = lambda version: False
    ) -> None:
        self.max_entries, self.max_bytes, self.is_ours = max_entries, max_bytes, is_ours
        self.entries: dict[K, Entry[K, V]] = {}
        self.bytes = 0
        self.dirty = 0
        """How many changes wait to be taken."""
        self.flying = 0
        self._line: deque[Entry[K, V]] = deque()  # those that wait, and some that no longer do
        self._ring: deque[Entry[K, V]] = deque()  # clean ones, and some that no longer are
        self._pins: set[K] = set()
        self.misses = self.evicted = self.invalidated = self.conflicts = self.full = 0

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def unstored(self) -> int:
        """How many changes the store does not have yet."""
        return self.dirty + self.flying

    def peek(self, key: K) -> Entry[K, V] | None:
        """None: not here. An entry whose ``value`` is None: known to be absent, or deleted by us. Whoever uses it says
        so by its ``visited``."""
        return self.entries.get(key)

    # -- filling

    def put_clean(self, key: K, packed: bytes, value: V | None, stored: Stored | None) -> Entry[K, V]:
        """What the store holds (None: nothing), and its value. A dirty entry is newer and stays as it is. Where there
        is no room the entry that is returned is not ``cached``."""
        entry = self.entries.get(key)
        if entry is not None and entry.dirty:
            return entry
        payload = None if stored is None else stored.payload
        try:
            entry = self._sized(entry, key, packed, payload)
        except StateError:
            if entry is not None:
                self._remove(entry)
            entry = Entry(key, packed)
            entry.cached = False
        entry.value, entry.payload = value, payload
        if stored is None:
            entry.version, entry.deadline_ms, entry.recent = 0, 0, b""
        else:
            entry.version, entry.deadline_ms, entry.recent, _ = stored
        if entry.cached and not entry.queued:
            self._enqueue(entry)
        return entry

    def put_dirty(
        self, key: K, packed: bytes, value: V | None, payload: bytes | None, deadline_ms: int = 0
    ) -> Entry[K, V]:
        """A change; None deletes. Its base is what is cached, or ``UNKNOWN``. Raises, and changes nothing:
        ``StateFull`` when there is no room besides changes and pinned entries, ``StateError`` when there never is."""
        entry = self.entries.get(key)
        if entry is None:
            entry = self._sized(None, key, packed, payload)
            entry.version = UNKNOWN
        self.change(entry, value, payload, deadline_ms)
        return entry

    def change(self, entry: Entry[K, V], value: V | None, payload: bytes | None, deadline_ms: int) -> bool:
        """``put_dirty`` for an entry that is here. True: it waits from now on, and did not before."""
        old = entry.payload
        if old is None or payload is None or len(old) != len(payload):
            self._sized(entry, entry.key, entry.packed, payload)
        entry.value = value
        entry.payload = payload
        entry.visited = True
        if entry.flying:
            if not entry.changed:
                entry.changed, entry.flying_until_ms = True, entry.deadline_ms
        elif not entry.dirty:
            entry.dirty, entry.base_until_ms = True, entry.deadline_ms
            self.dirty += 1
            self._line.append(entry)
            entry.deadline_ms = deadline_ms
            return True
        entry.deadline_ms = deadline_ms
        return False

    def based(self, entry: Entry[K, V], stored: Stored | None) -> None:
        """What the entry's change replaces: the answer to a read for one that had no base, or our own update that was
        under way when it was put."""
        entry.version, entry.base_until_ms, entry.recent = (0, 0, b"") if stored is None else stored[:3]

    # -- flushing

    def take_dirty(self, most: int) -> list[Entry[K, V]]:
        """Up to ``most`` changes, now flying. For each comes one of ``flushed``, ``conflicted`` and ``failed``."""
        taken: list[Entry[K, V]] = []
        line = self._line
        while line and len(taken) < most:
            entry = line.popleft()
            if entry.dirty and not entry.flying:
                entry.flying = True
                entry.changed = entry.stale = False
                entry.deleting = entry.payload is None
                taken.append(entry)
        self.dirty -= len(taken)
        self.flying += len(taken)
        return taken

    def take(self, entry: Entry[K, V]) -> bool:
        """This one out of its turn; False when it does not wait."""
        if not entry.dirty or entry.flying:
            return False
        self.dirty -= 1
        self.flying += 1
        entry.flying, entry.changed, entry.stale = True, False, False
        entry.deleting = entry.payload is None
        self._sweep()
        return True

    def sent(self, entry: Entry[K, V]) -> None:
        """Its value leaves only now, not when it was taken: what was put in between goes along."""
        entry.changed, entry.deleting = False, entry.payload is None

    def flushed(self, entry: Entry[K, V], version: int) -> None:
        """The store has what flew, under this version (a delete has one too)."""
        if not self._landed(entry):
            return
        if entry.deleting:
            entry.version, entry.base_until_ms, entry.recent = 0, 0, b""
        else:
            entry.version, entry.base_until_ms = version, entry.flying_until_ms  # of use where it was changed
        entry.maybe_deleted = False
        self._settle(entry)

    def flushed_all(self, entries: list[Entry[K, V]], first: int) -> None:
        """``flushed`` for all of them, under consecutive versions: the usual ones without a call each."""
        usual = 0
        for version, entry in enumerate(entries, first):
            if not entry.queued or not entry.flying or entry.changed or entry.stale or entry.deleting:
                self.flushed(entry, version)
            else:
                entry.flying = entry.dirty = entry.maybe_deleted = False
                entry.version = version
                usual += 1
        self.flying -= usual

    def conflicted(self, entry: Entry[K, V], stored: Stored | None, now_ms: int = 0) -> bool:
        """Another version stands in the store. True: somebody else's; the change is lost and the entry no longer here,
        ``entry.value`` tells what it was. False: an earlier flight of ours, or what it replaces has expired by now; the
        entry is dirty, and based on what stands there."""
        if not self._landed(entry):
            return False
        if stored is None:
            nobodys = entry.maybe_deleted or 0 < entry.base_until_ms <= now_ms + CLOCKS_DIFFER_MS
        else:
            nobodys = self.is_ours(stored.version)
        if nobodys:
            self.based(entry, stored)
            entry.maybe_deleted = False
            entry.changed = True
            self._settle(entry)
            return False
        self.conflicts += 1
        entry.dirty = False
        self._remove(entry)
        return True

    def failed(self, entry: Entry[K, V]) -> None:
        """It may have arrived or not, and is dirty again, behind all others."""
        if not self._landed(entry):
            return
        entry.maybe_deleted |= entry.deleting
        until_ms = entry.flying_until_ms if entry.changed else entry.deadline_ms
        if until_ms and not 0 < entry.base_until_ms <= until_ms:
            entry.base_until_ms = until_ms  # of what may stand there, the first that goes
        entry.changed = True
        self._settle(entry)

    def discard(self, entry: Entry[K, V]) -> None:
        """Forgets the entry and its change. Not one that is flying: it would arrive without being known here, and our
        own writes are not told to us."""
        if entry.cached and not entry.flying:
            self._remove(entry)
            self._sweep()

    def clear(self) -> None:
        """Forgets everything, unstored changes too; answers still to come are ignored. For what is dropped in the store
        behind all flights."""
        for entry in list(self.entries.values()):
            self._remove(entry)
        self._sweep()

    # -- what others change

    def invalidate(self, key: K) -> Entry[K, V] | None:
        """Somebody else wrote or removed it. A clean entry goes. A dirty one stays, and is returned: its flush will
        meet the conflict, and had better come soon."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        self.invalidated += 1
        if not entry.dirty:
            self._remove(entry)
            return None
        entry.stale = entry.flying
        return entry

    def drop_clean(self, is_stale: Callable[[bytes], bool] = lambda packed: True) -> None:
        """Those of these packed keys may be stale, whoever changed them."""
        for key in [key for key, entry in self.entries.items() if is_stale(entry.packed)]:
            self.invalidate(key)

    # -- pins

    def pin(self, key: K) -> None:
        """The key's entry is never evicted, now or when it comes. ``StateFull`` when half of ``max_entries`` are
        pinned."""
        if key not in self._pins and len(self._pins) >= self.max_entries // 2:
            raise StateFull(f"{len(self._pins)} keys are pinned, half of the {self.max_entries} entries of the cache")
        self._pins.add(key)
        if entry := self.entries.get(key):
            entry.pinned = True

    def unpin(self, key: K) -> None:
        self._pins.discard(key)
        if entry := self.entries.get(key):
            entry.pinned = False
            self._enqueue(entry)

    def statistics(self) -> dict[str, int]:
        return {
            "entries_now": len(self.entries),
            "bytes_now": self.bytes,
            "dirty_now": self.dirty,
            "flying_now": self.flying,
            "pinned_now": len(self._pins),
            "misses": self.misses,
            "evicted": self.evicted,
            "invalidated": self.invalidated,
            "conflicts": self.conflicts,
            "full": self.full,
        }

    # -- inside

    def _sweep(self) -> None:
        """Who left the line out of turn keeps a place there until it is reached, or too many do."""
        if len(self._line) > 2 * self.dirty + 1024:
            self._line = deque(dict.fromkeys(one for one in self._line if one.dirty and not one.flying))

    def _landed(self, entry: Entry[K, V]) -> bool:
        if not entry.flying:
            return False
        entry.flying = False
        self.flying -= 1
        return True

    def _settle(self, entry: Entry[K, V]) -> None:
        """A flight that is over leaves its entry dirty when it was changed meanwhile, clean when not."""
        if entry.changed:
            self.dirty += 1
            self._line.append(entry)
            return
        entry.dirty = False
        if entry.stale:
            self._remove(entry)
        elif not entry.queued:
            self._enqueue(entry)

    def _sized(self, entry: Entry[K, V] | None, key: K, packed: bytes, payload: bytes | None) -> Entry[K, V]:
        """The entry (a new one where it is None) with room for this value."""
        size = ENTRY_BYTES + len(packed) + (0 if payload is None else len(payload))
        if size > self.max_bytes or not self.max_entries:
            raise StateError(
                f"an entry of {size} bytes, the cache holds {self.max_bytes} in {self.max_entries} entries"
            )
        more = size if entry is None else size - entry.size
        while self.bytes + more > self.max_bytes or (entry is None and len(self.entries) >= self.max_entries):
            self._evict(entry)
        if entry is None:
            entry = self.entries[key] = Entry(key, packed)
            if self._pins:
                entry.pinned = key in self._pins
        self.bytes += more
        entry.size = size
        return entry

    def _evict(self, kept: Entry[K, V] | None) -> None:
        ring, spared = self._ring, 0
        for _ in range(len(ring) + _SPARED):
            if not ring:
                break
            entry = ring.popleft()
            if not entry.cached or entry.dirty or entry.pinned:
                entry.queued = False
            elif entry is kept:
                ring.append(entry)
            elif entry.visited and spared < _SPARED:
                entry.visited = False
                ring.append(entry)
                spared += 1
            else:
                self.evicted += 1
                self._remove(entry)
                return
        self.full += 1
        pinned = f", {len(self._pins)} keys are pinned" if self._pins else ""
        raise StateFull(f"{self.unstored} of {len(self.entries)} cached entries are changes not stored yet{pinned}")

    def _enqueue(self, entry: Entry[K, V]) -> None:
        if entry.queued or entry.dirty or entry.pinned:
            return
        entry.queued = True
        self._ring.append(entry)
        # Invalidated entries stay in the ring until the hand comes by; where it never comes they are swept out here.
        if len(self._ring) > 2 * len(self.entries) + 1024:
            self._ring = deque(one for one in self._ring if one.cached)

    def _remove(self, entry: Entry[K, V]) -> None:
        if entry.flying:
            self.flying -= 1
        elif entry.dirty:
            self.dirty -= 1
        entry.cached = entry.dirty = entry.flying = False
        del self.entries[entry.key]
        self.bytes -= entry.size
