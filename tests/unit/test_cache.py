"""The cache, fact by fact. `tests/model/test_cache_model.py` plays it against a store."""

from typing import Any

import pytest

from libvnf.errors import StateError, StateFull
from libvnf.state.cache import ENTRY_BYTES, UNKNOWN, Cache, Entry
from libvnf.state.store import SEQUENCE_BITS, Stored

US, OTHERS = 1 << SEQUENCE_BITS, 2 << SEQUENCE_BITS


def make(entries: int = 4, size: int = 1 << 20) -> Cache[str, Any]:
    return Cache(entries, size, is_ours=lambda version: US < version < US + 100)


def clean(cache: Cache[str, Any], *keys: str, version: int = OTHERS, payload: bytes = b"v") -> Entry[str, Any]:
    for key in keys:
        entry = cache.put_clean(key, key.encode(), payload, Stored(version, 0, b"", payload))
    return entry


def dirty(cache: Cache[str, Any], *keys: str, payload: bytes | None = b"d") -> Entry[str, Any]:
    for key in keys:
        entry = cache.put_dirty(key, key.encode(), payload, payload)
    return entry


def use(cache: Cache[str, bytes], key: str) -> None:
    entry = cache.peek(key)
    assert entry is not None
    entry.visited = True


# --- eviction ---------------------------------------------------------------------------------------------------------


def test_the_entry_that_goes_is_one_that_was_not_used_since_the_hand_came_by() -> None:
    cache = make()
    clean(cache, "a", "b", "c", "d")
    use(cache, "a")
    use(cache, "c")
    clean(cache, "e")
    assert sorted(cache.entries) == ["a", "c", "d", "e"]
    clean(cache, "f")
    assert sorted(cache.entries) == ["a", "c", "e", "f"]


def test_a_scan_over_many_keys_does_not_push_out_what_is_in_use() -> None:
    cache = make(10)
    clean(cache, "hot")
    for n in range(100):
        use(cache, "hot")
        clean(cache, str(n))
    assert len(cache) == 10


def test_a_look_without_a_trace_is_no_use() -> None:
    cache = make(2)
    clean(cache, "a", "b")
    cache.peek("a")
    clean(cache, "c")
    assert cache.peek("a") is None
    assert cache.misses == 0


def test_changes_are_never_evicted_and_a_full_cache_says_what_fills_it() -> None:
    cache = make(3)
    cache.pin("p")
    clean(cache, "p")
    dirty(cache, "a", "b")
    with pytest.raises(StateFull, match="2 of 3 cached entries are changes not stored yet, 1 keys are pinned"):
        dirty(cache, "c")
    assert not clean(cache, "c").cached, "read all the same, but not kept"
    dirty(cache, "a", payload=b"again")
    assert cache.full == 2
    (one,) = cache.take_dirty(1)
    with pytest.raises(StateFull):
        dirty(cache, "c")
    cache.flushed(one, US + 1)
    dirty(cache, "c")
    assert "a" not in cache.entries


def test_an_entry_that_grows_makes_others_go_and_not_itself() -> None:
    cache = make(4, 2 * (ENTRY_BYTES + 50))
    clean(cache, "a", "b")
    dirty(cache, "a", payload=bytes(100))
    assert sorted(cache.entries) == ["a"]
    with pytest.raises(StateFull):
        dirty(cache, "c")
    assert cache.bytes == ENTRY_BYTES + 101


def test_a_clean_entry_is_not_evicted_to_make_room_for_itself() -> None:
    cache = make(4, 2 * (ENTRY_BYTES + 50))
    clean(cache, "a")
    dirty(cache, "b", payload=bytes(49))
    with pytest.raises(StateFull):
        dirty(cache, "a", payload=bytes(60))
    assert cache.peek("a") is not None


def test_a_clean_entry_that_was_read_anew_and_no_longer_fits_goes() -> None:
    cache = make(4, 2 * (ENTRY_BYTES + 50))
    clean(cache, "a")
    dirty(cache, "b", payload=bytes(49))
    assert not clean(cache, "a", payload=bytes(60), version=OTHERS + 1).cached
    assert cache.peek("a") is None


def test_what_never_fits_is_another_error_than_a_full_cache() -> None:
    cache = make(4, 1000)
    with pytest.raises(StateError, match="entry of 1401 bytes, the cache holds 1000") as caught:
        dirty(cache, "a", payload=bytes(1000))
    assert not isinstance(caught.value, StateFull)
    assert not clean(cache, "a", payload=bytes(1000)).cached


def test_pinned_entries_stay_also_when_they_come_later_and_half_can_be() -> None:
    cache = make(4)
    cache.pin("a")
    clean(cache, "a", "b", "c", "d", "e", "f", "g")
    assert "a" in cache.entries
    cache.pin("b")
    with pytest.raises(StateFull, match="2 keys are pinned, half of the 4"):
        cache.pin("c")
    cache.unpin("a")
    clean(cache, "h", "i", "j", "k", "l")
    assert "a" not in cache.entries
    cache.pin("l")
    clean(cache, "m", "n", "o", "p", "q")
    assert "l" in cache.entries, "pinned when it had come already"


def test_rings_and_lines_do_not_grow_with_what_came_and_went() -> None:
    cache = make()
    for _ in range(20_000):
        clean(cache, "a")
        cache.invalidate("a")
        entry = dirty(cache, "b")
        cache.take(entry)
        cache.failed(entry)
        cache.discard(entry)
        cache.discard(dirty(cache, "c"))
    assert len(cache._ring) < 2000
    assert len(cache._line) < 2000
    assert (cache.bytes, cache.dirty, cache.flying) == (0, 0, 0)


# --- flights ----------------------------------------------------------------------------------------------------------


def test_changes_are_taken_in_the_order_of_the_first_change() -> None:
    cache = make()
    dirty(cache, "b", "a", "c", "b")
    assert [e.key for e in cache.take_dirty(2)] == ["b", "a"]
    assert [e.key for e in cache.take_dirty(9)] == ["c"]
    assert cache.take_dirty(9) == []
    assert (cache.dirty, cache.flying, cache.unstored) == (0, 3, 3)


def test_a_change_in_flight_leaves_the_entry_dirty_on_the_version_that_flew() -> None:
    cache = make()
    clean(cache, "a")
    entry = dirty(cache, "a")
    cache.take_dirty(1)
    dirty(cache, "a", payload=b"newer")
    cache.flushed(entry, US + 5)
    assert (entry.dirty, entry.flying, entry.version, entry.payload) == (True, False, US + 5, b"newer")


def test_what_was_put_between_taking_and_sending_flies_along() -> None:
    cache = make()
    entry = dirty(cache, "a")
    cache.take_dirty(1)
    assert entry.version == UNKNOWN
    cache.based(entry, Stored(OTHERS, 0, b"r" * 8, b"old"))
    dirty(cache, "a", payload=None)
    cache.sent(entry)
    cache.flushed(entry, US + 1)
    assert (entry.dirty, entry.version, entry.recent) == (False, 0, b""), "it was a delete"


def test_a_flight_that_failed_is_taken_again_behind_the_others() -> None:
    cache = make()
    entry = dirty(cache, "a")
    cache.take_dirty(1)
    dirty(cache, "b")
    cache.failed(entry)
    assert [e.key for e in cache.take_dirty(9)] == ["b", "a"]


def test_anothers_version_is_a_conflict_and_the_change_is_handed_over() -> None:
    cache = make()
    clean(cache, "a")
    entry = dirty(cache, "a")
    cache.take_dirty(1)
    assert cache.conflicted(entry, Stored(OTHERS + 7, 0, b"", b"theirs"))
    assert entry.value == b"d"
    assert not entry.cached
    assert cache.peek("a") is None
    assert (cache.conflicts, cache.unstored, cache.bytes) == (1, 0, 0)


def test_an_own_version_is_a_flight_that_had_no_answer() -> None:
    cache = make()
    entry = dirty(cache, "a")
    cache.based(entry, None)
    cache.take_dirty(1)
    cache.failed(entry)
    cache.take_dirty(1)
    assert not cache.conflicted(entry, Stored(US + 3, 0, b"", b"d"))
    assert (entry.version, entry.dirty) == (US + 3, True)
    assert cache.take_dirty(1) == [entry]


def test_a_version_of_another_client_with_our_writer_is_a_conflict() -> None:
    cache = make()
    entry = dirty(cache, "a")
    cache.based(entry, None)
    cache.take_dirty(1)
    assert cache.conflicted(entry, Stored(US + 1000, 0, b"", b"theirs"))


def test_nothing_where_a_delete_had_no_answer_is_no_conflict_and_otherwise_is_one() -> None:
    for deleted in (True, False):
        cache = make()
        clean(cache, "a")
        entry = dirty(cache, "a", payload=None if deleted else b"x")
        cache.take_dirty(1)
        cache.failed(entry)
        dirty(cache, "a", payload=b"new")
        cache.take_dirty(1)
        assert cache.conflicted(entry, None) is not deleted
        assert entry.cached is deleted
        if deleted:
            assert (entry.version, entry.dirty) == (0, True)


def test_answers_for_what_was_forgotten_are_ignored() -> None:
    for answer in (
        lambda cache, entry: cache.flushed(entry, US),
        lambda cache, entry: cache.failed(entry),
        lambda cache, entry: cache.conflicted(entry, None),
    ):
        cache = make()
        entry = dirty(cache, "a")
        cache.take_dirty(1)
        cache.clear()
        newer = dirty(cache, "a")
        answer(cache, entry)
        assert cache.take_dirty(9) == [newer]
        assert (cache.flying, cache.dirty, cache.conflicts) == (1, 0, 0)


# --- what others change -----------------------------------------------------------------------------------------------


def test_an_invalidated_clean_entry_goes_a_dirty_one_stays_for_its_conflict() -> None:
    cache = make()
    clean(cache, "a")
    assert cache.invalidate("a") is None
    assert cache.peek("a") is None
    entry = dirty(cache, "b")
    assert cache.invalidate("b") is entry
    assert cache.peek("b") is entry
    assert cache.invalidate("nothing") is None


def test_an_entry_invalidated_in_flight_is_not_believed_once_it_has_landed() -> None:
    cache = make()
    entry = dirty(cache, "a")
    cache.take_dirty(1)
    assert cache.invalidate("a") is entry
    cache.flushed(entry, US + 1)
    assert cache.peek("a") is None
    entry = dirty(cache, "a")
    cache.take_dirty(1)
    cache.drop_clean()
    dirty(cache, "a", payload=b"newer")
    cache.flushed(entry, US + 2)
    assert (entry.dirty, entry.version) == (True, US + 2), "the next flight will see"


def test_an_invalidation_in_a_flight_that_failed_is_settled_by_the_next_one() -> None:
    cache = make()
    entry = dirty(cache, "a")
    cache.take_dirty(1)
    cache.invalidate("a")
    cache.failed(entry)
    cache.take_dirty(1)
    cache.flushed(entry, US + 1)
    assert cache.peek("a") is entry, "the store took it for what stands there"


def test_losing_the_connection_drops_all_that_is_clean() -> None:
    cache = make()
    clean(cache, "a", "b")
    dirty(cache, "c")
    cache.drop_clean()
    assert sorted(cache.entries) == ["c"]
    assert cache.statistics()["invalidated"] == 3


def test_what_is_read_does_not_replace_a_change() -> None:
    cache = make()
    entry = dirty(cache, "a")
    assert clean(cache, "a") is entry
    assert entry.value == b"d"


def test_absence_is_cached_as_well() -> None:
    cache = make()
    cache.put_clean("a", b"a", None, None)
    entry = cache.peek("a")
    assert entry is not None
    assert (entry.value, entry.version, entry.dirty) == (None, 0, False)
    assert dirty(cache, "a").version == 0, "a put on it expects nothing there"
