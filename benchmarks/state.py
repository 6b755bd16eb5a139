"""What shared state costs: tables over a Redis Cluster of three masters, against redis-py with hiredis on the same one.

Flushes of a write-back cache (conditional on versions, and not), values that are not cached, atomic updates, hits. The
client, its loop and its native thread, is on cpu 0; all masters share cpu 1. Both clients run in this process, on one
uvloop, in turns. The loop's processor time is that of its thread; the native thread's is beside it in the JSON.

    python benchmarks/state.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio
import uvloop
from harness import GENERATOR_CPU, ROOT, SERVER_CPU, Measured, Results, Sample, best_class, distance, main, median
from harness import rounds as in_turn

sys.path.insert(0, str(ROOT))

from libvnf import Record
from libvnf.state import write_back, write_through
from libvnf.state.redis import RedisStore
from libvnf.state.store import Versions
from libvnf.state.tables import Tables
from libvnf.state.url import StoreURL
import state_abc
from tests.redis_cluster import RedisCluster

KEYS = 50_000
VALUE = 200
IN_FLIGHT = 64
REDIS_PY_PIPELINE, REDIS_PY_PIPELINES = 100, 4
BATCH, BATCHES = 4096, 4
FLUSH_GOAL, GETS_GOAL, UPDATES, HITS, DECODES, SETS = 12.0, 8.0, 80e3, 3e6, 1e6, 500e3


def prepare() -> asyncio.AbstractEventLoop:
    """A loop on the generator's cpu, in a session of its own at the front, as the harness starts its programs."""
    with contextlib.suppress(OSError):  # it leads a process group already, or may not
        os.setsid()
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-20")
    os.sched_setaffinity(0, {GENERATOR_CPU})
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


class Meter:
    """What a run has done, within ``with meter:`` only: what goes before a flush is not the flush."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = self.loop_s = self.all_s = 0.0
        self.took: list[float] = []

    def __enter__(self) -> None:
        self._begun = time.perf_counter(), time.thread_time(), time.process_time()

    def __exit__(self, *_: object) -> None:
        begun, thread, process = self._begun
        self.seconds += time.perf_counter() - begun
        self.loop_s += time.thread_time() - thread
        self.all_s += time.process_time() - process


Work = Callable[[Meter, float], Awaitable[None]]


@dataclass
class Client(Measured):
    """One of those that are compared."""

    loop: asyncio.AbstractEventLoop = field(kw_only=True)
    work: Work = field(kw_only=True)
    native_us: list[float] = field(default_factory=list, kw_only=True)

    def run(self, duration_s: float, warmup_s: float = 0.3) -> Sample:
        before = distance()[0]
        self.loop.run_until_complete(self.work(Meter(), warmup_s))
        meter = Meter()
        self.loop.run_until_complete(self.work(meter, duration_s))
        took = sorted(meter.took) or [0.0]
        self.native_us.append((meter.all_s - meter.loop_s) * 1e6 / meter.count)
        sample = Sample(
            meter.count / meter.seconds,
            took[len(took) // 2] * 1e6,
            took[len(took) * 99 // 100] * 1e6,
            meter.loop_s * 1e6 / meter.count,
            0,
            (before, distance()[0]),
        )
        self.samples.append(sample)
        return sample


def flushing(table: Any, keys: list[str]) -> Work:
    """All keys are changed, and flushed."""
    values = itertools.cycle([bytes([number]) * VALUE for number in range(256)])

    async def work(meter: Meter, seconds: float) -> None:
        while meter.seconds < seconds:
            value = next(values)
            for key in keys:
                table.put_nowait(key, value)
            with meter:
                await table.flush()
            meter.count += len(keys)

    return work


def pipelines(client: redis.asyncio.RedisCluster, keys: list[str]) -> Work:
    """redis-py's best: four pipelines of a hundred unconditional SETs at a time."""
    value = bytes(VALUE)

    async def work(meter: Meter, seconds: float) -> None:
        until, cycle = time.perf_counter() + seconds, itertools.cycle(keys)

        async def one() -> None:
            while time.perf_counter() < until:
                pipeline = client.pipeline()
                for key in itertools.islice(cycle, REDIS_PY_PIPELINE):
                    pipeline.set(key, value)
                await pipeline.execute()
                meter.count += REDIS_PY_PIPELINE

        with meter:
            await asyncio.gather(*(one() for _ in range(REDIS_PY_PIPELINES)))

    return work


def batches(store: RedisStore, handle: int, keys: list[bytes], replicas: int) -> Work:
    """Unconditional writes below the tables, so many batches at a time."""
    versions, payloads = Versions(store.writer), [bytes(VALUE)] * BATCH

    async def work(meter: Meter, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until, cycle = time.perf_counter() + seconds, itertools.cycle(keys)

        async def one() -> None:
            while time.perf_counter() < until:
                done = loop.create_future()
                some, first = list(itertools.islice(cycle, BATCH)), versions.take(BATCH)
                store.write(handle, some, None, first, payloads, done.set_result, replicas=replicas)
                written = await done
                assert written == ([], []), written
                meter.count += BATCH

        with meter:
            await asyncio.gather(*(one() for _ in range(BATCHES)))

    return work


def calls(call: Callable[[str], Awaitable[Any]], keys: list[str]) -> Work:
    """So many at a time, each awaited."""

    async def work(meter: Meter, seconds: float) -> None:
        until, cycle, now = time.perf_counter() + seconds, itertools.cycle(keys), time.perf_counter

        async def one() -> None:
            begun = now()
            while begun < until:
                await call(next(cycle))
                ended = now()
                meter.took.append(ended - begun)
                begun = ended

        with meter:
            await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
        meter.count = len(meter.took)

    return work


def hits(table: Any, key: str) -> Work:
    async def work(meter: Meter, seconds: float) -> None:
        get = table.get
        while meter.seconds < seconds:
            with meter:
                for _ in range(100_000):
                    await get(key)
            meter.count += 100_000

    return work


class Subscriber(Record):
    imsi: str
    apn: str
    address: str
    teid: int
    qci: int
    up_bytes: int
    down_bytes: int
    since_s: float
    roaming: bool


class Session(Subscriber):
    """Ten fields, as a subscriber's session has them."""

    bearers: tuple[int, ...]


class Growing(Subscriber):
    """The same with a list in it, which could be changed in place: each reader gets its own, decoded for it."""

    bearers: list[int]


FIELDS = ("001010000000001", "internet", "10.45.0.2", 4711, 9, 123456, 7891011, 1.7e9, False)


# --- rows -------------------------------------------------------------------------------------------------------------


def goal(results: Results, claim: str, case: str, side: Client, wanted: float, unit: str) -> None:
    """A row against a fixed goal."""
    kind = best_class(side)
    rate = median(side, lambda s: s.rate, kind)
    results.add(claim, case, rate, "goal", wanted, unit, 1.0, **{"class": kind}, **details(side, kind))


def details(side: Client, kind: str | None) -> dict[str, Any]:
    return {
        "cpu_us": round(median(side, lambda s: s.cpu_us, kind), 3),
        "native_us": round(statistics.median(side.native_us), 3),
        "p50_us": round(median(side, lambda s: s.p50_us, kind)),
        "p99_us": round(median(side, lambda s: s.p99_us, kind)),
    }


@contextlib.contextmanager
def tables_of(loop: asyncio.AbstractEventLoop, url: str) -> Iterator[Tables]:
    """Tables without a VNF around them."""
    tables = Tables(logging.getLogger("benchmark"))
    loop.run_until_complete(tables.start(url, lambda fn, *args: fn(*args), 10.0))
    try:
        yield tables
    finally:
        loop.run_until_complete(tables.close())


def add(tables: Tables, name: str, value: Any, durability: Any, **options: Any) -> Any:
    """A table that the store knows of."""
    table: Any = tables.add(name, str, value, durability, **options)

    async def opened() -> None:
        while not table.open:  # noqa: ASYNC110 — a table does not say so by itself
            await asyncio.sleep(0.001)

    tables.loop.run_until_complete(opened())
    return table


def flushes(results: Results, tables: Tables, client: redis.asyncio.RedisCluster, run: Any) -> None:
    keys = [f"user:{number:06}" for number in range(KEYS)]
    loop, room = tables.loop, {"max_entries": 2 * KEYS, "max_bytes": 1 << 30}
    later = write_back(interval_s=3600)
    conditional = add(tables, "conditional", bytes, later, **room)
    blind = add(tables, "unconditional", bytes, later, last_writer_wins=True, **room)
    ours = Client("conditional", loop=loop, work=flushing(conditional, keys))
    theirs = Client("redis-py", loop=loop, work=pipelines(client, [f"redis-py:{key}" for key in keys]))
    last = Client("last writer wins", loop=loop, work=flushing(blind, keys))
    run(ours, theirs, last)
    results.compare("flush, conditional", "3 masters, 200 B", ours, theirs, FLUSH_GOAL, "entries/s")
    kind = best_class(ours)
    cpu = median(ours, lambda s: s.cpu_us, kind)
    results.add("flush, loop cpu", "per entry", cpu, "goal", 1.0, "µs", 1.0, less_is_better=True, **details(ours, kind))
    goal(results, "flush, last writer wins", "3 masters, 200 B", last, SETS, "entries/s")


def remote(results: Results, tables: Tables, client: redis.asyncio.RedisCluster, run: Any, quick: bool) -> None:
    loop, keys = tables.loop, [f"user:{number:06}" for number in range(20_000)]
    # Room for so few that none is found again.
    table = add(tables, "remote", bytes, write_through, max_entries=4 * IN_FLIGHT)

    async def fill() -> None:
        for start in range(0, len(keys), 100):
            some = keys[start : start + 100]
            await asyncio.gather(*(table.put(key, bytes(VALUE)) for key in some))
            await asyncio.gather(*(client.set(f"redis-py:{key}", bytes(VALUE)) for key in some))

    loop.run_until_complete(fill())
    ours = Client("tables", loop=loop, work=calls(table.get, keys))
    theirs = Client("redis-py", loop=loop, work=calls(client.get, [f"redis-py:{key}" for key in keys]))
    raw = [redis_benchmark(client, 20_000 if quick else 200_000)]
    run(ours, theirs)
    raw.append(redis_benchmark(client, 20_000 if quick else 200_000))
    results.compare("remote GET", f"{IN_FLIGHT} at a time", ours, theirs, GETS_GOAL)
    kind, p99 = best_class(ours), statistics.median(p99 for _, p99 in raw)
    results.add(
        *("remote GET, p99", f"{IN_FLIGHT} at a time", median(ours, lambda s: s.p99_us, kind), "redis-benchmark", p99),
        *("µs", 0.5),
        less_is_better=True,
        raw_rate=[rate for rate, _ in raw],
        **details(ours, kind),
    )


def redis_benchmark(client: redis.asyncio.RedisCluster, count: int) -> tuple[float, float]:
    """Rate and p99 (µs) of GETs by Redis's own tool, as many at a time."""
    node = client.get_primaries()[0]
    command = f"redis-benchmark -h {node.host} -p {node.port} --cluster -c {IN_FLIGHT} -d {VALUE} -r 20000 -t get --csv"
    done = subprocess.run([*command.split(), "-n", str(count)], capture_output=True, text=True, check=True)
    header, row = (line.replace('"', "").split(",") for line in done.stdout.splitlines()[-2:])
    found = dict(zip(header, row, strict=True))
    return float(found["rps"]), 1000 * float(found["p99_latency_ms"])


def updates(results: Results, tables: Tables, run: Any) -> None:
    keys = [f"user:{number:06}" for number in range(20_000)]
    table = add(tables, "counters", int, write_through, max_entries=2 * len(keys))

    async def one(key: str) -> None:
        await table.update(key, lambda value: value + 1, default=0)

    ours = Client("tables", loop=tables.loop, work=calls(one, keys))
    run(ours)
    goal(results, "atomic update", f"{IN_FLIGHT} at a time", ours, UPDATES, "updates/s")


def local(results: Results, tables: Tables, run: Any) -> None:
    table = add(tables, "hits", Session, write_back(interval_s=3600))
    growing = add(tables, "decoded", Growing, write_back(interval_s=3600))
    tables.loop.run_until_complete(table.put("key", Session(*FIELDS, (5, 6))))
    tables.loop.run_until_complete(growing.put("key", Growing(*FIELDS, [5, 6])))
    found = Client("get", loop=tables.loop, work=hits(table, "key"))
    decoded = Client("get, decoding", loop=tables.loop, work=hits(growing, "key"))
    run(found, decoded)
    goal(results, "local hit", "await table.get", found, HITS, "gets/s")
    goal(results, "local hit, decoded", "await table.get, 10 fields", decoded, DECODES, "gets/s")


def replicated(results: Results, loop: asyncio.AbstractEventLoop, url: str, run: Any) -> None:
    store = RedisStore(StoreURL.parse(url))
    loop.run_until_complete(store.open())
    try:
        handle, keys = store.table("replicated"), [b"user:%06d" % number for number in range(KEYS)]
        acknowledged = Client("WAIT 1", loop=loop, work=batches(store, handle, keys, 1))
        plain = Client("without WAIT", loop=loop, work=batches(store, handle, keys, 0))
        run(acknowledged, plain)
        results.compare("replicated(1)", "3 masters, 3 replicas", acknowledged, plain, 0.9, "entries/s")
    finally:
        loop.run_until_complete(store.close())


@contextlib.contextmanager
def cluster(directory: Path, *, replicas: bool = False, cpu: int = SERVER_CPU) -> Iterator[RedisCluster]:
    found = RedisCluster(directory, replicas=replicas, cpu=cpu)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def measure(results: Results, quick: bool, scratch: Path) -> None:
    loop = prepare()

    def run(*sides: Client) -> None:
        in_turn(sides, 3 if quick else 9, 0.5 if quick else 2.0)

    with cluster(scratch / "masters") as masters, tables_of(loop, masters.url) as tables:
        node = masters.nodes[0]
        client = redis.asyncio.RedisCluster(host="127.0.0.1", port=node.port)
        try:
            loop.run_until_complete(client.initialize())
            local(results, tables, run)
            flushes(results, tables, client, run)
            remote(results, tables, client, run, quick)
            updates(results, tables, run)
        finally:
            loop.run_until_complete(client.aclose())
    with cluster(scratch / "replicas", replicas=True) as whole:
        replicated(results, loop, whole.url, run)
    loop.close()
    with cluster(scratch / "abc", cpu=GENERATOR_CPU) as masters:
        state_abc.measure(results, masters, quick, scratch)


if __name__ == "__main__":
    main("Shared state", measure)
