"""The replica of the fault tests, a VNF file: tables of every durability, changed by lines that each name a command.

What it answers lets the asker count: which change was answered, and what the store had by then.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from libvnf import (
    VNF,
    Connection,
    Delimiter,
    LockLost,
    Record,
    Request,
    local,
    replicated,
    write_back,
    write_through,
)

LEVELS = {
    "local": local,
    "interval": write_back(interval_s=0.05),
    "every": write_back(every=20),
    "request_end": write_back(on_request_end=True),
    "write_through": write_through,
    "replicated": replicated(1),
    # Never by themselves, as far as a test lasts.
    "interval_long": write_back(interval_s=3600),
    "every_many": write_back(every=1_000_000),
}


class Both(Record):
    """Changed by some with ``update``, by others with ``put``."""

    updates: int = 0
    puts: int = 0


vnf = VNF("tally")
tables = {name: vnf.table(name, key=bytes, value=int, durability=level) for name, level in LEVELS.items()}
sums = vnf.table("sums", key=bytes, value=int, durability=write_through)
both = vnf.table("both", key=int, value=Both, durability=write_back(interval_s=0.002))
told: Counter[str] = Counter()
go = asyncio.Event()


@both.on_conflict
def lost(_key: int, ours: Both, theirs: Both | None) -> None:
    told["conflicts"] += 1
    told["lost puts"] += ours.puts - (theirs.puts if theirs else 0)


@tables["interval_long"].on_conflict
def given_way(_key: bytes, _ours: int, theirs: int | None) -> None:
    told[f"gave way to {theirs}"] += 1


Command = Callable[..., Awaitable[str]]
commands: dict[str, Command] = {}


def command(fn: Command) -> Command:
    commands[fn.__name__] = fn
    return fn


@command
async def put(_conn: Connection, level: str, key: str, number: str) -> str:
    """Answered with the number, and how many flights had landed and how many changes flew and waited before."""
    table = tables[level]
    before = table.statistics()
    if table.durability.cached:
        table.put_nowait(key.encode(), int(number))
    else:
        await table.put(key.encode(), int(number))
    return f"{number} {before.get('flushes', 0)} {before.get('flying_now', 0)} {before.get('dirty_now', 0)}"


@command
async def incr(_conn: Connection, level: str, key: str, _number: str) -> str:
    """Answered with the sum."""
    return str(await sums.incr(key.encode(), durability=None if level == "write_through" else LEVELS[level]))


@command
async def change(_conn: Connection, level: str, key: str, number: str) -> str:
    """Put over what was read."""
    table = tables[level]
    await table.get(key.encode())
    table.put_nowait(key.encode(), int(number))
    return "changed"


@command
async def get(_conn: Connection, level: str, key: str) -> str:
    return str(await tables[level].get(key.encode()))


@command
async def flush(_conn: Connection, level: str) -> str:
    await tables[level].flush()
    return "flushed"


@command
async def hold(conn: Connection, key: str, lease_s: str, number: str) -> str:
    """Takes a lock, says so with its fence, and writes when it is told to."""
    try:
        async with sums.lock(key.encode(), lease_s=float(lease_s)) as held:
            conn.send(b"holds %d\n" % held.fence)
            await go.wait()
            await held.put(int(number))
    except LockLost:
        return "refused"
    return "written"


@command
async def proceed(_conn: Connection) -> str:
    go.set()
    return "told"


@command
async def count(_conn: Connection, key: str, updates: str, incrs: str) -> str:
    """So many of each at once; how many succeeded, and what they returned, summed up."""
    outcomes: list[int] = []

    async def one(times: int, call: Callable[[], Awaitable[int]]) -> None:
        outcomes.extend([await call() for _ in range(times)])

    name = key.encode()
    add = [one(int(updates) // 32, lambda: sums.update(name, lambda value: value + 1, 0)) for _ in range(32)]
    await asyncio.gather(*add, *(one(int(incrs) // 32, lambda: sums.incr(name)) for _ in range(32)))
    return f"{len(outcomes)} {sum(outcomes)}"


@command
async def update(_conn: Connection, times: str, keys: str, seed: str) -> str:
    chance = random.Random(int(seed))

    async def one() -> None:
        for _ in range(int(times) // 4):
            key = chance.randrange(int(keys))
            await both.update(key, lambda value: value.replace(updates=value.updates + 1), Both())

    await asyncio.gather(*(one() for _ in range(4)))
    return "updated"


@command
async def overwrite(conn: Connection, keys: str, seed: str) -> str:
    """Puts what it makes of what it has read, until it is told to stop; how often, and what became of it."""
    chance, made = random.Random(int(seed)), 0
    conn.send(b"begins\n")
    while not go.is_set():
        key = chance.randrange(int(keys))
        value = await both.get(key) or Both()
        both.put_nowait(key, value.replace(puts=value.puts + 1))
        made += 1
        await asyncio.sleep(0)
    await both.flush()
    return json.dumps({"made": made, "counted": both.statistics()["conflicts"], **told})


@command
async def stats(_conn: Connection, level: str) -> str:
    table: Any = sums if level == "sums" else tables[level]
    return json.dumps({**table.statistics(), **told})


async def answer(conn: Connection, packet: Any) -> None:
    name, *words = bytes(packet).decode().split()
    conn.send((await commands[name](conn, *words)).encode() + b"\n")


@vnf.server("tcp://127.0.0.1:0", framing=Delimiter(b"\n"))
async def plain(conn: Connection, request: Request, packet: Any) -> None:
    await answer(conn, packet)


@vnf.server("tcp://127.0.0.1:0", framing=Delimiter(b"\n"), commit="before_send")
async def committed(conn: Connection, request: Request, packet: Any) -> None:
    await answer(conn, packet)
