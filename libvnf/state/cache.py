"""What one replica holds of one table. No I/O, no clock: the table moves entries between here and the store.

An entry is in one of four states:

* **clean**: the store has it. It may be evicted, and an invalidation removes it. ``value`` None says it is absent there.
* **dirty**: it waits in the order of first change, until :meth:`Cache.take_dirty`. ``value`` None is a delete to be done.
  Without a *base* (``version`` is ``UNKNOWN``: put blindly, never read) it waits aside until :meth:`Cache.based`.
* **flying**: dirty, and on its way to the store under the version ``attempt``.
* **flying and changed**: what flies is not the newest. Whatever becomes of it, the entry is dirty afterwards.

Neither dirty nor flying ones are ever evicted: :class:`StateFull` when there is no room besides them.

A flight whose outcome nobody knows may have arrived. The next one has a version of its own and the same base, so
finding one of *our* unanswered versions in the store is no conflict: the entry is based on that and goes on.

Eviction is CLOCK (second chance): a hit costs one flag, not a move in a list, and a scan over many keys does not push out
those in use. Only clean entries are in the ring; one that was passed over there comes back when it is clean again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from ..errors import StateError, StateFull
from .store import Stored, Versions

__all__ = ["ENTRY_BYTES", "UNKNOWN", "Cache", "Entry"]

K = TypeVar("K")
V = TypeVar("V")

ENTRY_BYTES = 400
"""What an entry counts besides its packed key and value: about what the objects of a small one take."""

UNKNOWN = -1
"""The version of an entry that was put without knowing what it replaces."""

_SPARED = 64  # entries given a second chance in one search for room: the next goes without, so that no put takes long


class Entry(Generic[K, V]):
    """Read by anyone, written by its :class:`Cache`; the table may set ``visited`` and ``deadline_ms``."""

    __slots__ = (
        "attempt",
        "cached",
        "changed",
        "deadline_ms",
        "dirty",
        "flying",
        "key",
        "name",
        "packed",
        "pinned",
        "queued",
        "recent",
        "size",
        "stale",
        "tried",
        "tried_delete",
        "value",
        "version",
        "visited",
    )

    def __init__(self, key: K, name: bytes) -> None:
        self.key = key
        self.name = name  # the packed key
        self.value: V | None = None
        self.packed: bytes | None = None
        self.version = 0  # its base: what stands in the store as far as we know
        self.deadline_ms = 0
        self.recent = b""
        self.dirty = self.flying = self.changed = False
        self.pinned = self.visited = False
        self.cached = True
        self.queued = False  # in the ring
        self.stale = False  # flying, and somebody else wrote meanwhile
        self.attempt = 0  # the version it flies under, or flew
        self.tried = 0  # the first version since the last answer whose outcome is unknown
        self.tried_delete = False
        self.size = 0


class Cache(Generic[K, V]):
    """Holds at most ``max_entries``, and ``max_bytes`` of packed keys and values with :data:`ENTRY_BYTES` for each."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.entries: dict[K, Entry[K, V]] = {}
        self.bytes = 0
        self._dirty: dict[K, Entry[K, V]] = {}  # with a base, not flying; in the order of first change
        self._baseless: dict[K, Entry[K, V]] = {}
        self._flying = 0
        self._pins: set[K] = set()
        self._ring: deque[Entry[K, V]] = deque()
        self.hits = self.misses = self.evicted = self.invalidated = self.conflicts = self.full = 0

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def dirty(self) -> int:
        """How many changes the store does not have, those that are flying included."""
        return len(self._dirty) + len(self._baseless) + self._flying

    def get(self, key: K) -> Entry[K, V] | None:
        """None: not here. An entry whose ``value`` is None: known to be absent, or deleted by us."""
        entry = self.entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        entry.visited = True
        self.hits += 1
        return entry

    # -- filling

    def put_clean(self, key: K, name: bytes, value: V | None, stored: Stored | None) -> Entry[K, V] | None:
        """What the store was read to hold (None: nothing). A dirty entry is newer and stays. None when there is no room:
        reading goes on without a cache."""
        entry = self.entries.get(key)
        if entry is not None and entry.dirty:
            return entry
        packed = None if stored is None else stored.payload
        try:
            entry = self._sized(entry, key, name, packed)
        except StateError:
            if entry is not None:
                self._remove(entry)
            return None
        entry.value, entry.packed = value, packed
        entry.version, entry.deadline_ms, entry.recent = (0, 0, b"") if stored is None else stored[:3]
        self._enqueue(entry)
        return entry

    def put_dirty(
        self, key: K, name: bytes, value: V | None, packed: bytes | None, deadline_ms: int = 0
    ) -> Entry[K, V]:
        """A change; None deletes. Its base is what is cached, or unknown. ``StateFull`` when there is no room besides
        changes and pinned entries (nothing is changed then), ``StateError`` when there never will be."""
        entry = self.entries.get(key)
        if entry is None:
            entry = self._sized(None, key, name, packed)
            entry.version = UNKNOWN
        else:
            size = ENTRY_BYTES + len(name) + (0 if packed is None else len(packed))
            if size > entry.size:
                self._sized(entry, key, name, packed)
            else:
                self.bytes += size - entry.size
                entry.size = size
        entry.value = value
        entry.packed = packed
        entry.deadline_ms = deadline_ms
        entry.visited = True
        if entry.flying:
            entry.changed = True
        elif not entry.dirty:
            entry.dirty = True
            (self._baseless if entry.version == UNKNOWN else self._dirty)[key] = entry
        return entry

    def based(self, entry: Entry[K, V], version: int, recent: bytes) -> None:
        """The entry's change replaces this version (0: nothing): the answer to a read for an entry without a base, or
        our own update that was under way when it was changed. Not for one that is flying."""
        if not entry.cached or not entry.dirty or entry.flying:
            return
        entry.version, entry.recent = version, recent
        if self._baseless.pop(entry.key, None) is not None:
            self._dirty[entry.key] = entry

    def baseless(self, most: int) -> list[Entry[K, V]]:
        """Changes that cannot fly before they are read: the oldest ``most``."""
        return [entry for entry, _ in zip(self._baseless.values(), range(most), strict=False)]

    # -- flushing

    def take_dirty(
        self, most: int, versions: Versions, *, unconditional: bool = False
    ) -> tuple[int, list[Entry[K, V]]]:
        """The oldest changes, now flying under the versions from the first that is returned. Those without a base come
        along when the write is ``unconditional``. Each is to be answered by one of the four methods below, once."""
        if unconditional and self._baseless:
            for entry in list(self._baseless.values()):
                self.based(entry, 0, b"")
        taken = [entry for entry, _ in zip(self._dirty.values(), range(most), strict=False)]
        return self._take_off(taken, versions), taken

    def take(self, entry: Entry[K, V], versions: Versions) -> int:
        """One dirty entry with a base, out of its turn; the version it flies under, 0 if it cannot fly now."""
        return self._take_off([entry], versions) if entry.key in self._dirty and entry.cached else 0

    def flushed(self, entry: Entry[K, V], *, deleted: bool) -> None:
        """The store has what flew; ``deleted``: that was a delete."""
        if not self._landed(entry):
            return
        entry.version = 0 if deleted else entry.attempt
        if deleted:
            entry.recent = b""
        entry.tried, entry.tried_delete = 0, False
        self._settle(entry)

    def conflicted(self, entry: Entry[K, V], stored: Stored | None) -> bool:
        """Another version stands in the store. True: somebody else's, the change is lost and the entry gone from here
        (``entry.value`` still tells what it was). False: it was a flight of ours that had no answer, all is well."""
        if not self._landed(entry):
            return False
        if entry.tried and (entry.tried_delete if stored is None else entry.tried <= stored.version <= entry.attempt):
            arrived = stored is not None and stored.version == entry.attempt
            entry.version, entry.recent = (0, b"") if stored is None else (stored.version, stored.recent)
            entry.tried, entry.tried_delete = 0, False
            entry.changed |= not arrived
            self._settle(entry)
            return False
        self.conflicts += 1
        self._remove(entry)
        return True

    def failed(self, entry: Entry[K, V], *, unknown: bool, deleted: bool) -> None:
        """It is dirty again, behind all others. ``unknown``: it may have arrived all the same, as a delete or not."""
        if not self._landed(entry):
            return
        if unknown:
            entry.tried = entry.tried or entry.attempt
            entry.tried_delete |= deleted
        entry.changed = True
        entry.stale = False
        self._settle(entry)

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

    def drop_clean(self, keys: Iterable[K] | None = None) -> None:
        """Any of these (None: of all) may be stale; as :meth:`invalidate`, and nobody knows of a conflict."""
        for key in list(self.entries) if keys is None else keys:
            self.invalidate(key)

    def clear(self) -> None:
        """Everything goes, unstored changes too; flights still to be answered are forgotten."""
        for entry in self.entries.values():
            entry.cached = False
        self.entries.clear()
        self._dirty.clear()
        self._baseless.clear()
        self._ring.clear()
        self.bytes = self._flying = 0

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
            "flying_now": self._flying,
            "pinned_now": len(self._pins),
            "hits": self.hits,
            "misses": self.misses,
            "evicted": self.evicted,
            "invalidated": self.invalidated,
            "conflicts": self.conflicts,
            "full": self.full,
        }

    # -- inside

    def _take_off(self, taken: list[Entry[K, V]], versions: Versions) -> int:
        first = versions.take(len(taken)) if taken else 0
        for number, entry in enumerate(taken, first):
            del self._dirty[entry.key]
            entry.flying = True
            entry.changed = entry.stale = False
            entry.attempt = number
        self._flying += len(taken)
        return first

    def _landed(self, entry: Entry[K, V]) -> bool:
        if not entry.flying or not entry.cached:
            return False
        entry.flying = False
        self._flying -= 1
        return True

    def _settle(self, entry: Entry[K, V]) -> None:
        """A flight that is over leaves its entry dirty when it was changed meanwhile, clean when not."""
        if entry.changed:
            entry.changed = False
            self._dirty[entry.key] = entry
            return
        entry.dirty = False
        if entry.stale:
            self._remove(entry)
        else:
            self._enqueue(entry)

    def _sized(self, entry: Entry[K, V] | None, key: K, name: bytes, packed: bytes | None) -> Entry[K, V]:
        """The entry (a new one where it is None) with room for this value."""
        size = ENTRY_BYTES + len(name) + (0 if packed is None else len(packed))
        if size > self.max_bytes or not self.max_entries:
            raise StateError(
                f"an entry of {size} bytes, the cache holds {self.max_bytes} in {self.max_entries} entries"
            )
        while self.bytes + size - (entry.size if entry else 0) > self.max_bytes or (
            entry is None and len(self.entries) >= self.max_entries
        ):
            self._evict(entry)
        if entry is None:
            entry = self.entries[key] = Entry(key, name)
            entry.pinned = key in self._pins
        self.bytes += size - entry.size
        entry.size = size
        return entry

    def _evict(self, kept: Entry[K, V] | None) -> None:
        spared = 0
        for _ in range(len(self._ring) + _SPARED):
            if not self._ring:
                break
            entry = self._ring.popleft()
            if not entry.cached or entry.dirty or entry.pinned:
                entry.queued = False
            elif entry is kept:
                self._ring.append(entry)
            elif entry.visited and spared < _SPARED:
                entry.visited = False
                self._ring.append(entry)
                spared += 1
            else:
                self.evicted += 1
                entry.queued = False
                self._remove(entry)
                return
        self.full += 1
        pinned = f", {len(self._pins)} keys are pinned" if self._pins else ""
        raise StateFull(f"{self.dirty} of {len(self.entries)} cached entries are changes not stored yet{pinned}")

    def _enqueue(self, entry: Entry[K, V]) -> None:
        if entry.queued or entry.dirty or entry.pinned:
            return
        entry.queued = True
        self._ring.append(entry)
        # Invalidated entries stay in the ring until the hand comes by; where it never comes they are swept out here.
        if len(self._ring) > 2 * len(self.entries) + 1024:
            self._ring = deque(one for one in self._ring if one.cached)

    def _remove(self, entry: Entry[K, V]) -> None:
        entry.cached = entry.dirty = entry.flying = False
        del self.entries[entry.key]
        self._dirty.pop(entry.key, None)
        self._baseless.pop(entry.key, None)
        self.bytes -= entry.size

    def __iter__(self) -> Iterator[Entry[K, V]]:
        return iter(self.entries.values())
