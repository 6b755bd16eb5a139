"""The store contract, as the store in this process keeps it; its faults, on a clock of the test's own."""

import heapq
from collections.abc import Callable
from typing import Any

import pytest

from libvnf.errors import ConfigError, DurabilityUnknown, LockLost, StateError, StateFull, StoreUnavailable
from libvnf.state.memory import Memory, MemoryStore
from libvnf.state.store import RECENT, SEQUENCE_BITS, Store, Stored, Versions, Written, carried


class Time:
    """A loop that runs what is due, and jumps to what is due next only when told how far."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def time(self) -> float:
        return self.now_s

    def clock_ms(self) -> int:
        return 1_000_000 + round(self.now_s * 1000)

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.call_later(0.0, callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + delay, self._count, callback))

    def run(self, seconds: float = 0.0) -> None:
        until_s = self.now_s + seconds
        while self._queue and self._queue[0][0] <= until_s + 1e-9:
            at_s, _, callback = heapq.heappop(self._queue)
            self.now_s = max(self.now_s, at_s)
            callback()
        self.now_s = until_s


class World:
    """One store, and clients of it whose calls are run to their end."""

    def __init__(self) -> None:
        self.time = Time()
        self.memory = Memory(self.time.clock_ms)
        self.told: list[tuple[MemoryStore, list[bytes] | None]] = []
        self.states: list[str] = []

    async def client(self, **options: Any) -> "Client":
        client = Client(self, MemoryStore(self.memory, self.time, **options))
        client.store.on_invalid = lambda table, keys: self.told.append((client.store, keys))
        client.store.on_state = self.states.append
        await client.store.open()
        client.versions = Versions(client.store.writer)
        client.table = client.store.table("t")
        self.time.run()
        return client


class Client:
    versions: Versions
    table: int

    def __init__(self, world: World, store: MemoryStore) -> None:
        self.world, self.store = world, store
        contract: Store = store  # the type checker's proof
        assert contract is store

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        answers: list[Any] = []
        getattr(self.store, method)(self.table, *args, lambda *got: answers.append(got), **options)
        assert answers == [], "answered before the call returned"
        self.world.time.run()
        assert len(answers) == 1
        return answers[0] if len(answers[0]) > 1 else answers[0][0]

    def read(self, *keys: bytes) -> Any:
        return self.call("read", list(keys))

    def write(self, key: bytes, payload: bytes | None, expected: int | None = None, **options: Any) -> Any:
        """The version it was stored under; else what stands there or what went wrong."""
        answers: list[Written] = []
        version = options.pop("version", 0) or self.versions.take()
        wanted = None if expected is None else [expected]
        self.store.write(self.table, [key], wanted, version, [payload], answers.append, **options)
        assert answers == []
        self.world.time.run()
        (written,) = answers
        if written.conflicts:
            return written.conflicts[0][1]
        return written.failed[0][1] if written.failed else version


@pytest.fixture
def world() -> World:
    return World()


# --- versions ---------------------------------------------------------------------------------------------------------


def test_versions_are_given_out_once_and_carry_their_writer() -> None:
    versions = Versions(5)
    first, second = versions.take(3), versions.take()
    assert (first, second) == ((5 << SEQUENCE_BITS) + 1, (5 << SEQUENCE_BITS) + 4)


def test_clients_with_the_same_writer_have_versions_of_their_own() -> None:
    one, other = Versions(5, 0.25), Versions(5, 0.5)
    assert one.take() >> SEQUENCE_BITS == other.take() >> SEQUENCE_BITS == 5
    ours, theirs = [one.take() for _ in range(100)], [other.take() for _ in range(100)]
    assert all(one.took(version) and not other.took(version) for version in ours)
    assert all(other.took(version) and not one.took(version) for version in theirs)


def test_what_was_taken_is_known_across_the_end_of_the_sequence() -> None:
    last = (1 << SEQUENCE_BITS) - 1
    versions = Versions(5)
    versions._start = versions._next = last - 3
    taken = [versions.take() for _ in range(6)]
    assert all(map(versions.took, taken))
    others = [(5 << SEQUENCE_BITS) + sequence for sequence in (last - 4, 4, 1 << 20)]
    assert not any(map(versions.took, [*others, *(version + (1 << SEQUENCE_BITS) for version in taken), 0]))


def test_a_run_of_versions_is_never_cut_by_the_end_of_the_sequence() -> None:
    versions = Versions(1)
    versions._next = (1 << SEQUENCE_BITS) - 2
    assert versions.take(2) & ((1 << SEQUENCE_BITS) - 1) == (1 << SEQUENCE_BITS) - 2
    assert versions.take(1) == (1 << SEQUENCE_BITS) + 1


@pytest.mark.parametrize("writer", [0, -1, 1 << 24])
def test_a_writer_has_24_bits_and_is_never_0(writer: int) -> None:
    with pytest.raises(ValueError, match="expected 1"):
        Versions(writer)


def test_an_update_goes_in_front_without_its_writers_older_one_and_eight_stay() -> None:
    recent = b""
    for writer in range(1, 11):
        recent = carried(recent, Versions(writer).take())
    assert [recent[at + 2] for at in range(0, len(recent), 8)] == [10, 9, 8, 7, 6, 5, 4, 3]
    again = Versions(6).take(2) + 1
    recent = carried(recent, again)
    assert len(recent) == 8 * RECENT
    assert recent[:8] == again.to_bytes(8, "big")
    assert [recent[at + 2] for at in range(0, len(recent), 8)] == [6, 10, 9, 8, 7, 5, 4, 3]


# --- reading and writing ----------------------------------------------------------------------------------------------


async def test_a_conditional_write_is_stored_where_the_version_stands_and_told_where_not(world: World) -> None:
    a = await world.client()
    one = a.write(b"k", b"1", 0)
    assert a.read(b"k", b"none") == [Stored(one, 0, b"", b"1"), None]
    assert a.write(b"k", b"2", 0) == Stored(one, 0, b"", b"1")
    two = a.write(b"k", b"2", one)
    assert a.read(b"k") == [Stored(two, 0, b"", b"2")]
    assert a.write(b"other", b"2", 77) is None, "a conflict with nothing"
    assert a.read(b"other") == [None]
    assert a.write(b"k", b"3") > two


async def test_each_entry_of_a_batch_is_by_itself(world: World) -> None:
    a = await world.client()
    stands = a.write(b"b", b"x", 0)
    first = a.versions.take(3)
    written = a.call("write", [b"a", b"b", b"c"], [0, 0, 0], first, [b"1", b"2", b"3"])
    assert written == ([(1, Stored(stands, 0, b"", b"x"))], [])
    assert [s and s.version for s in a.read(b"a", b"b", b"c")] == [first, stands, first + 2]


async def test_a_write_that_is_repeated_with_its_version_has_succeeded(world: World) -> None:
    a = await world.client()
    one = a.write(b"k", b"1", 0)
    assert a.write(b"k", b"1", 0, version=one) == one
    assert a.read(b"k") == [Stored(one, 0, b"", b"1")]


async def test_a_delete_needs_the_version_but_not_where_nothing_is(world: World) -> None:
    a = await world.client()
    one = a.write(b"k", b"1", 0)
    assert isinstance(a.write(b"k", None, one + 1), Stored)
    assert isinstance(a.write(b"k", None, one), int)
    assert a.read(b"k") == [None]
    assert isinstance(a.write(b"k", None, one), int), "repeated"
    assert isinstance(a.write(b"k", None), int)


async def test_an_update_that_deletes_what_is_gone_is_a_conflict(world: World) -> None:
    a = await world.client()
    one = a.write(b"k", b"1", 0)
    assert isinstance(a.write(b"k", None, one, update=True, recents=[b""]), int)
    assert a.write(b"k", None, one, update=True, recents=[b""]) is None
    assert isinstance(a.write(b"k", None, 0, update=True, recents=[b""]), int)


async def test_recent_updates_are_carried_by_puts_and_led_by_updates(world: World) -> None:
    a = await world.client()
    one = a.write(b"k", b"1", 0, update=True, recents=[b""])
    assert a.read(b"k")[0].recent == one.to_bytes(8, "big")
    two = a.write(b"k", b"2", one, recents=[a.read(b"k")[0].recent])
    assert a.read(b"k") == [Stored(two, 0, one.to_bytes(8, "big"), b"2")]
    a.write(b"k", b"3")
    assert a.read(b"k")[0].recent == b""


async def test_too_few_replicas_leave_the_write_standing_and_say_so(world: World) -> None:
    a = await world.client()
    assert isinstance(a.write(b"k", b"1", 0, replicas=1), DurabilityUnknown)
    assert a.read(b"k")[0].payload == b"1"


async def test_a_table_is_known_by_its_name_and_settings(world: World) -> None:
    a = await world.client()
    assert a.store.table("t") == a.table != a.store.table("u")
    with pytest.raises(ConfigError, match="'t': partitions=7"):
        a.store.table("t", partitions=7)


async def test_a_scan_has_every_entry_that_stands_throughout(world: World) -> None:
    a = await world.client()
    keys = [b"%d" % n for n in range(25)]
    for key in keys:
        a.write(key, key, 0)
    found, cursor, turns = [], None, 0
    while turns == 0 or cursor is not None:
        cursor, some = a.call("scan", cursor, 10)
        found += some
        turns += 1
        a.write(b"0", None)
    assert {key for key, _ in found} >= set(keys) - {b"0"}
    assert turns == 3


async def test_dropping_a_table_leaves_the_others(world: World) -> None:
    a, b = await world.client(), await world.client()
    other = a.store.table("other")
    a.write(b"k", b"1", 0)
    b.read(b"k")
    world.told.clear()
    a.store.write(other, [b"k"], [0], a.versions.take(), [b"2"], lambda written: None)
    assert a.call("drop") is None
    assert a.read(b"k") == [None]
    assert world.told == [(b.store, [b"k"])]
    a.table = other
    assert a.read(b"k")[0].payload == b"2"


# --- what others change -----------------------------------------------------------------------------------------------


async def test_who_read_or_wrote_a_key_is_told_once_of_the_next_change_by_another(world: World) -> None:
    a, b = await world.client(), await world.client()
    assert a.store.writer != b.store.writer
    world.told.clear()
    a.read(b"absent")
    one = b.write(b"absent", b"1", 0)
    b.write(b"absent", b"2", one)
    assert world.told == [(a.store, [b"absent"])]
    a.write(b"k", b"1", 0)
    a.write(b"k", b"2")
    b.write(b"k", b"3")
    assert world.told[1:] == [(a.store, [b"k"])]


async def test_the_loser_of_a_conflict_is_told_of_the_next_change_too(world: World) -> None:
    a, b = await world.client(), await world.client()
    b.write(b"k", b"1", 0)
    assert isinstance(a.write(b"k", b"2", 0), Stored)
    world.told.clear()
    b.write(b"k", b"3")
    assert world.told == [(a.store, [b"k"])]


async def test_a_client_that_was_alone_hears_that_it_no_longer_is(world: World) -> None:
    a = await world.client()
    a.read(b"k")
    await world.client()
    assert world.told == [(a.store, None)]


# --- deadlines --------------------------------------------------------------------------------------------------------


async def test_an_entry_is_gone_at_its_deadline_and_who_read_it_is_told(world: World) -> None:
    a, b = await world.client(), await world.client()
    deadline = world.time.clock_ms() + 1000
    a.write(b"k", b"1", 0, deadlines=[deadline])
    world.told.clear()
    world.time.run(0.999)
    assert b.read(b"k")[0].deadline_ms == deadline
    world.time.run(0.002)
    assert b.read(b"k") == [None]
    assert {store for store, _ in world.told} == {a.store, b.store}


async def test_entries_that_nobody_reads_again_leave_nothing_behind(world: World) -> None:
    a = await world.client()
    for n in range(100):
        for _ in range(100):
            a.write(b"%d" % n, b"1", deadlines=[world.time.clock_ms() + 1000])
    table = world.memory.tables[a.table]
    assert len(table.dues) <= 2 * 100 + 1025
    world.time.run(2)
    a.read(b"another")
    assert table.entries == {}
    assert table.dues == []
    assert table.readers == {}


async def test_expired_entries_are_claimed_by_one_client_until_its_claim_ends(world: World) -> None:
    a, b = await world.client(), await world.client()
    a.table = b.table = a.store.table("sessions", keeps_expired=True)
    now = world.time.clock_ms()
    for n in (3, 1, 2):
        a.write(b"%d" % n, b"x", 0, deadlines=[now + n])
    a.write(b"never", b"x", 0)
    world.time.run(1)
    assert a.read(b"1")[0].payload == b"x", "kept beyond its deadline"
    now = world.time.clock_ms()
    claimed = a.call("claim_expired", now, 500, 2)
    assert [key for key, _ in claimed] == [b"1", b"2"]
    assert [key for key, _ in b.call("claim_expired", now, 500, 9)] == [b"3"]
    assert b.call("claim_expired", now + 499, 500, 9) == []
    assert [key for key, _ in b.call("claim_expired", now + 500, 500, 2)] == [b"1", b"2"], "a has died"
    assert b.call("expired", [b"1", b"2"], [stored.version for _, stored in claimed]) is None
    assert a.read(b"1", b"2") == [None, None]


async def test_an_entry_written_twice_with_one_deadline_is_claimed_once(world: World) -> None:
    a = await world.client()
    a.table = a.store.table("sessions", keeps_expired=True)
    now = world.time.clock_ms()
    a.write(b"k", b"x", deadlines=[now])
    two = a.write(b"k", b"x", deadlines=[now])
    assert [(key, stored.version) for key, stored in a.call("claim_expired", now, 500, 9)] == [(b"k", two)]


async def test_an_entry_that_was_renewed_while_it_was_claimed_stays(world: World) -> None:
    a = await world.client()
    a.table = a.store.table("sessions", keeps_expired=True)
    now = world.time.clock_ms()
    one = a.write(b"k", b"x", 0, deadlines=[now])
    assert len(a.call("claim_expired", now, 500, 9)) == 1
    a.write(b"k", b"y", one, deadlines=[now + 50])
    a.call("expired", [b"k"], [one])
    assert a.read(b"k")[0].payload == b"y"
    assert a.call("claim_expired", now + 49, 500, 9) == []
    assert len(a.call("claim_expired", now + 50, 500, 9)) == 1


# --- locks ------------------------------------------------------------------------------------------------------------


async def test_a_lock_has_one_owner_and_growing_fences(world: World) -> None:
    a, b = await world.client(), await world.client()
    mine, yours = a.versions.take(), b.versions.take()
    fence = a.call("lock", b"k", mine, 1000)
    assert b.call("lock", b"k", yours, 1000) is None
    assert a.call("lock", b"k", mine, 1000) == fence, "asked again by its owner"
    assert isinstance(b.call("unlock", b"k", yours), LockLost)
    assert a.call("unlock", b"k", mine) is None
    assert b.call("lock", b"k", yours, 1000) > fence


async def test_a_lease_is_renewed_while_beats_come_and_runs_out_when_they_stop(world: World) -> None:
    a, b = await world.client(stall_limit_s=5), await world.client()
    mine, yours = a.versions.take(), b.versions.take()
    a.call("lock", b"k", mine, 1000)
    for _ in range(4):
        world.time.run(4)
        a.store.beat()
    world.time.run(5.9)
    assert b.call("lock", b"k", yours, 1000) is None
    world.time.run(0.2)
    assert b.call("lock", b"k", yours, 1000) is not None
    assert isinstance(a.write(b"k", b"late", guard=(b"k", mine)), LockLost)
    assert a.read(b"k") == [None]
    assert isinstance(b.write(b"k", b"in time", guard=(b"k", yours)), int)


async def test_a_client_that_is_cut_off_loses_its_lock_after_the_lease(world: World) -> None:
    a, b = await world.client(), await world.client()
    a.call("lock", b"k", a.versions.take(), 1000)
    world.time.run(50)
    assert b.call("lock", b"k", b.versions.take(), 1000) is None, "looking at it notes the renewal"
    a.store.outage()
    world.time.run(0.9)
    assert b.call("lock", b"k", b.versions.take(), 1000) is None
    world.time.run(0.2)
    assert b.call("lock", b"k", b.versions.take(), 1000) is not None


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_calls_wait_out_an_outage_in_their_order(world: World) -> None:
    a = await world.client()
    a.read(b"k")
    a.store.outage("cut")
    answers: list[Any] = []
    a.store.write(a.table, [b"k"], [0], a.versions.take(), [b"1"], answers.append)
    a.store.read(a.table, [b"k"], answers.append)
    world.time.run(5)
    assert answers == []
    assert world.told == [(a.store, None)]
    a.store.recover()
    world.time.run()
    assert answers[0] == ([], [])
    assert answers[1][0].payload == b"1"
    assert world.states == ["up", "down: cut", "up"]


async def test_calls_fail_when_an_outage_is_longer_than_their_time(world: World) -> None:
    a = await world.client(timeout_s=3)
    a.store.outage("cut")
    answers: list[Any] = []
    a.store.write(a.table, [b"k"], [0], a.versions.take(), [b"1"], answers.append)
    a.store.read(a.table, [b"k"], answers.append)
    world.time.run(2.9)
    assert answers == []
    world.time.run(0.2)
    assert isinstance(answers[0].failed[0][1], StoreUnavailable)
    assert isinstance(answers[1][0], StoreUnavailable)
    assert a.store.statistics()["waiting_now"] == 0


async def test_others_are_not_heard_of_during_an_outage(world: World) -> None:
    a, b = await world.client(), await world.client()
    a.read(b"k")
    a.store.outage()
    world.time.run()
    world.told.clear()
    b.write(b"k", b"1", 0)
    assert world.told == []


async def test_a_slow_store_answers_late_and_in_order(world: World) -> None:
    a = await world.client()
    a.store.slow(0.5)
    answers: list[Any] = []
    a.store.write(a.table, [b"k"], [0], a.versions.take(), [b"1"], answers.append)
    a.store.slow(0)
    a.store.read(a.table, [b"k"], answers.append)
    world.time.run(0.4)
    assert answers == []
    world.time.run(0.2)
    assert answers[1][0].payload == b"1"


async def test_a_lost_answer_leaves_the_write_standing(world: World) -> None:
    a = await world.client()
    a.store.lose_answers(1)
    version = a.versions.take()
    assert isinstance(a.write(b"k", b"1", 0, version=version), DurabilityUnknown)
    assert a.write(b"k", b"1", 0, version=version) == version


async def test_refused_calls_change_nothing(world: World) -> None:
    a = await world.client()
    a.store.refuse(2, StateError("OOM"))
    assert str(a.write(b"k", b"1", 0)) == "OOM"
    assert str(a.read(b"k")[0]) == "OOM"
    assert a.read(b"k") == [None]


async def test_what_waits_is_bounded(world: World) -> None:
    a = await world.client(max_waiting=10)
    a.store.outage()
    a.store.read(a.table, [b"k"] * 10, lambda answers: None)
    with pytest.raises(StateFull, match="10 entries wait"):
        a.store.read(a.table, [b"k"], lambda answers: None)


async def test_closing_answers_what_waits_and_takes_no_more(world: World) -> None:
    a = await world.client()
    a.store.outage()
    answers: list[Any] = []
    a.store.read(a.table, [b"k"], answers.append)
    await a.store.close()
    await a.store.close()
    world.time.run()
    assert isinstance(answers[0][0], StoreUnavailable)
    with pytest.raises(StateError, match="closed"):
        a.store.read(a.table, [b"k"], answers.append)


async def test_a_store_that_is_down_cannot_be_opened(world: World) -> None:
    store = MemoryStore(world.memory, world.time)
    store.outage("no route")
    with pytest.raises(StoreUnavailable, match="no route"):
        await store.open()
