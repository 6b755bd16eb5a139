"""The cache against a store that is a dict, and against what every reader and every writer was promised.

The rules play a replica (puts, deletes, flushes whose answers are lost or bad), another replica that writes to the same
store, and the invalidations that follow. After each step the cache is held against an oracle that keeps, per key, only
the newest change that was neither stored nor lost to a conflict.
"""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from libvnf.errors import StateError, StateFull
from libvnf.state.cache import ENTRY_BYTES, UNKNOWN, Cache, Entry
from libvnf.state.store import Stored, Versions

MAX_ENTRIES, MAX_BYTES = 4, 4 * (ENTRY_BYTES + 60)
keys = st.integers(0, 6)
sizes = st.integers(0, 200)


def packed(key: int) -> bytes:
    return b"k%d" % key


class CacheMachine(RuleBasedStateMachine):
    flights = Bundle("flights")

    def __init__(self) -> None:
        super().__init__()
        # The same writer, as a store may give it to two that has lost its count of them.
        self.ours, self.theirs = Versions(1), Versions(1, 0.5)
        self.cache: Cache[int, bytes] = Cache(MAX_ENTRIES, MAX_BYTES, self.ours.took)
        self.store: dict[int, Stored] = {}
        self.tracked: set[int] = set()  # keys whose next change by others we are told of
        self.untold: list[int] = []  # invalidations under way
        self.mine: dict[int, bytes | None] = {}  # the oracle: changes that are neither stored nor lost
        self.newest: dict[int, int] = {}  # which put that was, for two deletes look alike
        self.deleted_by: dict[int, Entry[int, bytes] | None] = {}  # whose delete was the last; None: another's
        self.pinned: set[int] = set()
        self.flying: set[int] = set()
        self.count = 0
        self.conflicts = 0

    def fresh(self, size: int) -> bytes:
        self.count += 1
        return b"%d:" % self.count + bytes(size)

    # -- the replica

    @rule(key=keys)
    def read(self, key: int) -> None:
        entry = self.cache.peek(key)
        if entry is not None:
            entry.visited = True
        if key in self.mine:
            assert entry is not None
            assert entry.value == self.mine[key]
        elif entry is not None:
            if key not in self.untold:
                stored = self.store.get(key)
                assert (entry.value, entry.version) == ((stored.payload, stored.version) if stored else (None, 0))
        else:
            stored = self.store.get(key)
            self.tracked.add(key)
            got = self.cache.put_clean(key, packed(key), stored.payload if stored else None, stored)
            assert got.cached == (self.cache.peek(key) is got)
            assert got.value == (stored.payload if stored else None)

    @rule(key=keys, size=sizes, delete=st.booleans())
    def put(self, key: int, size: int, delete: bool) -> None:
        payload = None if delete else self.fresh(size)
        before = {k: (e.value, e.payload, e.dirty) for k, e in self.cache.entries.items() if e.dirty or e.pinned}
        try:
            entry = self.cache.put_dirty(key, packed(key), payload, payload)
        except StateFull:
            after = {k: (e.value, e.payload, e.dirty) for k, e in self.cache.entries.items()}
            assert all(after[k] == v for k, v in before.items())
            rest = [e for e in self.cache.entries.values() if not e.dirty and not e.pinned and e.key != key]
            assert rest == [], "full, though these could have gone"
            return
        assert entry.dirty
        assert self.cache.peek(key) is entry
        self.mine[key] = payload
        self.count += 1
        self.newest[key] = self.count

    @rule(key=keys)
    def put_what_never_fits(self, key: int) -> None:
        before = set(self.cache.entries)
        with pytest.raises(StateError):
            self.cache.put_dirty(key, packed(key), b"", bytes(MAX_BYTES))
        assert set(self.cache.entries) == before
        assert (key in self.mine) == (key in before and self.cache.entries[key].dirty)

    @rule(key=keys, pin=st.booleans())
    def pin(self, key: int, pin: bool) -> None:
        if not pin:
            self.cache.unpin(key)
            self.pinned.discard(key)
            return
        try:
            self.cache.pin(key)
        except StateFull:
            assert len(self.pinned) == MAX_ENTRIES // 2
        else:
            self.pinned.add(key)

    # -- flushes

    def depart(self, entry: Entry[int, bytes]) -> list[Any]:
        """A base first, as the table reads one; then what is sent."""
        assert entry.flying and entry.key not in self.flying
        if entry.version == UNKNOWN:
            self.tracked.add(entry.key)
            self.cache.based(entry, self.store.get(entry.key))
        self.flying.add(entry.key)
        assert entry.value == self.mine[entry.key]
        return [None, entry, entry.version, self.ours.take(), entry.payload, self.newest[entry.key]]

    @rule(target=flights, most=st.integers(0, 5))
    def take(self, most: int) -> Any:
        waiting = {k for k in self.mine if k not in self.flying}
        taken = self.cache.take_dirty(most)
        assert len(taken) == min(most, len(waiting))
        assert {e.key for e in taken} <= waiting
        return [self.depart(entry) for entry in taken]

    @rule(target=flights, key=keys)
    def take_one(self, key: int) -> Any:
        entry = self.cache.peek(key)
        waits = key in self.mine and key not in self.flying
        if entry is None:
            assert not waits
            return []
        assert self.cache.take(entry) is waits
        return [self.depart(entry)] if waits else []

    def apply(self, entry: Entry[int, bytes], expected: int, version: int, payload: bytes | None) -> Any:
        """As a store does it: True, or what stands there instead."""
        key = entry.key
        stored = self.store.get(key)
        if payload is None and stored is None:
            self.tracked.add(key)  # as of any key that was written
            return True
        if (stored.version if stored else 0) != expected:
            self.tracked.add(key)
            return ("conflict", stored)
        if payload is None:
            del self.store[key]
            self.deleted_by[key] = entry
        else:
            self.store[key] = Stored(version, 0, b"", payload)
        self.tracked.add(key)
        return True

    @rule(flight=flights, lost=st.booleans())
    def arrive(self, flight: Any, lost: bool) -> None:
        """Carried out, or lost on the way; the answer comes later, and an invalidation may overtake it."""
        for write in flight:
            if write[0] is None:
                _, entry, expected, version, payload, _ = write
                write[0] = "lost" if lost else self.apply(entry, expected, version, payload)

    @rule(flight=consumes(flights), heard=st.sampled_from([True, True, True, False]))
    def land(self, flight: Any, heard: bool) -> None:
        self.arrive(flight, False)
        for arrived, entry, _, version, _, which in flight:
            key = entry.key
            self.flying.discard(key)
            if arrived == "lost" or not heard:
                self.cache.failed(entry)
                assert entry.dirty
            elif arrived is True:
                self.cache.flushed(entry, version)
                if self.newest[key] == which:
                    del self.mine[key]
            else:
                _, stored = arrived
                mine = self.mine[key]
                if self.cache.conflicted(entry, stored):
                    assert stored is None or self.theirs.took(stored.version)
                    assert stored is not None or self.deleted_by.get(key) is not entry, "it was our own delete"
                    assert entry.value == mine
                    self.conflicts += 1
                    del self.mine[key]
                else:
                    assert entry.dirty

    @rule(key=keys)
    def discard(self, key: int) -> None:
        entry = self.cache.peek(key)
        if entry is not None:
            self.cache.discard(entry)
            assert entry.cached is entry.flying
            if not entry.flying:
                self.mine.pop(key, None)

    # -- the others

    @rule(key=keys, size=sizes, delete=st.booleans())
    def other(self, key: int, size: int, delete: bool) -> None:
        if delete:
            if self.store.pop(key, None):
                self.deleted_by[key] = None
        else:
            self.store[key] = Stored(self.theirs.take(), 0, b"", self.fresh(size))
        if key in self.tracked:
            self.tracked.discard(key)
            self.untold.append(key)

    @precondition(lambda self: self.untold)
    @rule()
    def tell(self) -> None:
        key = self.untold.pop(0)
        entry = self.cache.invalidate(key)
        assert (entry is not None) == (key in self.mine)

    @rule()
    def connection_lost(self) -> None:
        self.untold.clear()
        self.tracked.clear()
        self.cache.drop_clean()
        assert set(self.cache.entries) == set(self.mine)

    # -- what holds always

    @invariant()
    def bounds_hold_and_no_change_is_gone(self) -> None:
        cache = self.cache
        assert len(cache) <= MAX_ENTRIES
        assert cache.bytes <= MAX_BYTES
        assert cache.bytes == sum(ENTRY_BYTES + len(e.packed) + len(e.payload or b"") for e in cache.entries.values())
        assert {k: e.value for k, e in cache.entries.items() if e.dirty} == self.mine
        assert {k for k, e in cache.entries.items() if e.flying} == self.flying
        assert cache.flying == len(self.flying)
        assert cache.unstored == len(self.mine)
        assert {k for k, e in cache.entries.items() if e.pinned} == self.pinned & set(cache.entries)
        assert cache.conflicts == self.conflicts

    @invariant()
    def what_is_clean_is_what_stands_in_the_store_or_an_invalidation_is_under_way(self) -> None:
        for key, entry in self.cache.entries.items():
            if not entry.dirty and key not in self.untold:
                stored = self.store.get(key)
                assert (entry.version, entry.payload) == ((stored.version, stored.payload) if stored else (0, None))

    def teardown(self) -> None:
        """When nobody else writes any more, a few flushes store all, and the store has exactly what was put."""
        for entry in [e for e in self.cache.entries.values() if e.flying]:
            self.cache.failed(entry)
            self.flying.discard(entry.key)
        for _ in range(3):
            self.land(self.take(100), True)
        assert self.mine == {}
        assert self.cache.unstored == 0


TestCacheAgainstAStore = CacheMachine.TestCase
TestCacheAgainstAStore.settings = settings(max_examples=max(400, settings.default.max_examples))
