"""What replicas agree on before they share a table."""

from typing import Any

import pytest

from libvnf.errors import ConfigError, StateError, Unreadable
from libvnf.state.catalogue import CATALOGUE, KEYS, VALUES, Description, enrol
from libvnf.state.memory import Memory, MemoryStore
from libvnf.state.record import Record, ValueCodec
from libvnf.state.store import Versions
from tests.unit.test_memory_store import Time


class First(Record):
    user: str


class Longer(Record):
    user: str
    hits: int = 0


class Second(Record):
    name: str


class Replica:
    def __init__(self, memory: Memory, time: Time, *, partitions: int = 64) -> None:
        self.time, self.partitions = time, partitions
        self.store = MemoryStore(memory, time)

    async def enrol(self, codec: ValueCodec[Any], schema: int = 1) -> Any:
        if not self.store.writer:
            await self.store.open()
            self.versions = Versions(self.store.writer)
        answers: list[Any] = []
        mine = Description(self.partitions, False, "str", "Session", {schema: codec.fields()})
        enrol(self.store, self.versions, "sessions", mine, codec.learn, answers.append)
        self.time.run()
        (answer,) = answers
        return answer

    def known(self) -> Description:
        answers: list[Any] = []
        self.store.read(self.store.table(CATALOGUE, partitions=1), [KEYS.pack("sessions")], answers.append)
        self.time.run()
        return VALUES.unpack(answers[0][0].payload)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def memory(time: Time) -> Memory:
    return Memory(time.clock_ms)


async def test_code_of_the_next_schema_learns_what_the_one_before_called_its_fields(memory: Memory, time: Time) -> None:
    old = ValueCodec[First]("sessions", First)
    assert await Replica(memory, time).enrol(old) is None
    new = ValueCodec[Second]("sessions", Second, 2, {1: lambda fields: {"name": fields["user"]}})
    replica = Replica(memory, time)
    assert await replica.enrol(new, 2) is None
    assert new.unpack(old.pack(First("ann"))) == Second("ann")
    assert replica.known().schemas == {1: ["user"], 2: ["name"]}


async def test_added_fields_are_noted_and_older_code_does_not_take_them_back(memory: Memory, time: Time) -> None:
    for kind in (First, Longer, First):
        replica = Replica(memory, time)
        assert await replica.enrol(ValueCodec[Any]("sessions", kind)) is None
    assert replica.known().schemas == {1: ["user", "hits"]}


async def test_other_fields_under_one_schema_and_other_partitions_are_refused(memory: Memory, time: Time) -> None:
    await Replica(memory, time).enrol(ValueCodec[First]("sessions", First))
    refused = await Replica(memory, time).enrol(ValueCodec[Second]("sessions", Second))
    assert isinstance(refused, ConfigError)
    refused = await Replica(memory, time, partitions=8).enrol(ValueCodec[First]("sessions", First))
    assert isinstance(refused, ConfigError)
    assert "partitions=8, it is stored with partitions=64" in str(refused)


async def test_two_replicas_that_come_at_once_are_both_noted(memory: Memory, time: Time) -> None:
    a, b = Replica(memory, time), Replica(memory, time)
    answers: list[Any] = []
    for number, replica in enumerate((a, b), 1):
        await replica.store.open()
        mine = Description(64, False, "str", "Session", {number: [f"field{number}"]})
        enrol(replica.store, Versions(replica.store.writer), "sessions", mine, lambda known: None, answers.append)
    time.run()
    assert answers == [None, None]
    assert a.known().schemas == {1: ["field1"], 2: ["field2"]}


async def test_a_store_that_fails_and_an_entry_of_rubbish_are_told(memory: Memory, time: Time) -> None:
    replica, codec = Replica(memory, time), ValueCodec[First]("sessions", First)
    await replica.enrol(codec)
    replica.store.refuse(1, StateError("OOM"))
    assert str(await replica.enrol(codec)) == "OOM"
    handle = replica.store.table(CATALOGUE, partitions=1)
    version = replica.versions.take()
    replica.store.write(handle, [KEYS.pack("sessions")], None, version, [b"rubbish"], lambda written: None)
    assert isinstance(await replica.enrol(codec), Unreadable)
