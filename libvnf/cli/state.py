"""``vnf state``: what stands in a store, without the program that put it there.

The types of a table are known to its program alone; what is known here is the store's own table of tables, its
catalogue (:mod:`libvnf.state.catalogue`), and :mod:`libvnf.state.plain` reads by it. Nothing is enrolled, and what is
changed is changed on the condition that the version which was read still stands. All that a store says is hostile.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from typing import Any

import click

from ..control import printable
from ..errors import ConfigError, StateError, Unreadable, VNFError
from ..runtime import INTERRUPTED, USAGE, complain, terminable
from ..state.catalogue import CATALOGUE, KEYS, VALUES, Description
from ..state.plain import Plain, to_json, written
from ..state.record import MAX_KEY_BYTES
from ..state.redis import RedisStore
from ..state.store import Stored, Versions, Written
from ..state.url import StoreURL
from .ports import aligned

__all__ = ["state"]

ABSENT = 1
TIMEOUT_S = 5.0
"""For each question to the store: somebody waits at a terminal."""
STEP = 64
"""Entries asked for at once: with the longest values they are well below what the client takes of an answer."""
MOST_TABLES = 10_000
LONGEST_INPUT = 16 << 20
LONGEST_TEXT, LONGEST_WHY = 4000, 200


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} letters; --json has all)"


def why(error: BaseException) -> str:
    return printable(str(error)[:LONGEST_WHY])


def readable(stored: Stored | Unreadable) -> Stored:
    if isinstance(stored, Unreadable):
        raise stored
    return stored


class Shelf:
    """The store, opened, and what its catalogue says."""

    def __init__(self, url: str | None) -> None:
        if not url:
            raise ConfigError("which store? --store URL, or VNF_STORE in the environment")
        place = StoreURL.parse(url)
        if not place.shared:
            raise ConfigError(f"{place}: is within one process, and nobody else can look into it")
        if place.scheme == "redis+embedded" and not os.path.isdir(place.directory):
            raise ConfigError(f"{place}: there is no such directory")  # opening it would make one
        self.store = RedisStore(place, timeout_s=TIMEOUT_S)

    async def __aenter__(self) -> Shelf:
        try:
            await self.store.open(writes=False)
        except BaseException:
            await self.store.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()

    async def ask(self, call: Callable[..., None], *args: Any, **options: Any) -> Any:
        """One call's answer; several values are a tuple."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(*answer: Any) -> None:
            if not answered.done():
                answered.set_result(answer[0] if len(answer) == 1 else answer)

        call(*args, done, **options)
        return await answered

    async def entries(self, handle: int) -> AsyncIterator[tuple[bytes, Stored | Unreadable]]:
        cursor: object | None = None
        while True:
            cursor, found = await self.ask(self.store.scan, handle, cursor, STEP)
            if isinstance(found, StateError):
                raise found
            for entry in found:
                yield entry
            if cursor is None:
                return

    async def entry(self, handle: int, key: bytes) -> Stored | Unreadable | None:
        [answer] = await self.ask(self.store.read, handle, [key])
        if isinstance(answer, StateError) and not isinstance(answer, Unreadable):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def tables(self) -> dict[str, Description | Unreadable]:
        """By name."""
        found: dict[str, Description | Unreadable] = {}
        async for packed, stored in self.entries(self.store.table(CATALOGUE, partitions=1)):
            if len(found) >= MOST_TABLES:
                raise StateError(f"more than {MOST_TABLES:,} tables")
            try:
                name = KEYS.unpack(packed)
            except Unreadable as error:
                found[f"0x{packed.hex()}"] = error
                continue
            try:
                found[name] = VALUES.unpack(readable(stored).payload)
            except Unreadable as error:
                found[name] = error
        return dict(sorted(found.items()))

    async def plain(self, name: str) -> tuple[Plain, int]:
        """A table that there is, and its handle."""
        handle = self.store.table(CATALOGUE, partitions=1)
        stored = await self.entry(handle, KEYS.pack(name))
        if stored is None:
            there = ", ".join(list(await self.tables())[:20]) or "none"
            raise ConfigError(f"no table {name!r} in {self.store.url}; there: {there}")
        return self.opened(name, VALUES.unpack(readable(stored).payload))

    def opened(self, name: str, description: Description) -> tuple[Plain, int]:
        try:
            handle = self.store.table(name, partitions=description.partitions, keeps_expired=description.keeps_expired)
        except (ConfigError, OverflowError) as error:
            raise StateError(f"table {name!r} is described as none can be: {error}") from None
        return Plain(name, description), handle


# --- what a person reads ------------------------------------------------------------------------------------------


def key_of(plain: Plain, packed: bytes) -> dict[str, Any]:
    """``key``, or ``packed`` and why it has none."""
    try:
        return {"key": plain.shown(packed)}
    except Unreadable as error:
        return {"packed": packed.hex(), "unreadable": f"its key: {error}"}


def ends(stored: Stored | Unreadable) -> float | None:
    """Seconds until the entry expires; of one whose handler is still to come below zero; None: never."""
    if isinstance(stored, Unreadable) or not stored.deadline_ms:
        return None
    return (stored.deadline_ms - time.time_ns() // 1_000_000) / 1000


def version_of(stored: Stored | Unreadable | None) -> int:
    """0 of what is absent, and of what is no entry."""
    return stored.version if isinstance(stored, Stored) else 0


def told(plain: Plain, stored: Stored | Unreadable) -> dict[str, Any]:
    """An entry, as JSON."""
    if isinstance(stored, Unreadable):
        return {"version": 0, "ttl_s": None, "unreadable": str(stored)}
    found: dict[str, Any] = {"version": stored.version, "ttl_s": ends(stored)}
    try:
        schema, value, names = plain.read(stored.payload)
    except Unreadable as error:
        return {**found, "unreadable": str(error), "hex": stored.payload.hex()}
    fields = dict(zip(names, value, strict=False)) if names else value
    return {**found, "schema": schema, "value": to_json(fields)}


def lines(plain: Plain, stored: Stored | Unreadable) -> list[str]:
    """An entry, for people; its words are not yet fit for a terminal."""
    if isinstance(stored, Unreadable):
        return [f"  unreadable  {stored}"]
    ttl_s = ends(stored)
    expires = "never" if ttl_s is None else f"in {ttl_s:,.1f} s" if ttl_s > 0 else "has expired; its handler is to come"
    rows = [("version", str(stored.version)), ("expires", expires)]
    try:
        schema, value, names = plain.read(stored.payload)
    except Unreadable as error:
        rows += [("unreadable", str(error)[:LONGEST_WHY]), ("hex", cut(stored.payload.hex()))]
    else:
        rows.append(("schema", str(schema)))
        fields = zip(names, value, strict=False) if names else [("value", value)]
        rows += [(f"{name[:LONGEST_WHY]} =" if names else name, cut(written(one))) for name, one in fields]
    widest = min(32, max(len(name) for name, _ in rows))
    return [f"  {name.ljust(widest)}  {text}" for name, text in rows]


def say(line: str) -> None:
    click.echo(printable(line))


# --- the commands -------------------------------------------------------------------------------------------------


def with_store(command: Callable[..., Coroutine[Any, Any, int]]) -> Callable[..., None]:
    """A command that is given the :class:`Shelf` and returns the exit code."""

    @wraps(command)
    def run(store: str | None, **options: Any) -> None:
        async def within() -> int:
            async with Shelf(store) as shelf:
                return await command(shelf, **options)

        try:
            with terminable():
                code = asyncio.run(within())
        except KeyboardInterrupt:
            code = INTERRUPTED
        except VNFError as error:
            complain(StateError(printable(str(error)[:LONGEST_TEXT])))
            code = USAGE
        except BrokenPipeError:
            # Who read has enough; nothing is left to be written when this process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        sys.exit(code)

    return click.option("--store", envvar="VNF_STORE", metavar="URL", help="Where the tables are; or VNF_STORE.")(run)


table_argument = click.argument("table")
key_argument = click.argument("key")
packed_option = click.option("--packed", is_flag=True, help="KEY is the key's stored bytes, in hexadecimal.")
version_option = click.option(
    "--version", type=click.IntRange(0, 2**64 - 1), metavar="N", help="Only if this version stands there; 0: none."
)


def key_bytes(plain: Plain, text: str, *, packed: bool) -> bytes:
    if not packed:
        return plain.key(text)
    try:
        key = bytes.fromhex(text)
    except ValueError:
        raise ConfigError(f"--packed: {text[:100]!r} is not hexadecimal") from None
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise ConfigError(f"--packed: {len(key)} bytes, expected 1…{MAX_KEY_BYTES}")
    return key


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def state() -> None:
    """Look into the tables of a store, and change entries.

    The exit code is 1 when a key is absent, 2 when something is wrong.
    """


@state.command()
@click.argument("table", required=False)
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="At most so many.")
@click.option("--prefix", default="", metavar="TEXT", help="Keys that begin so, as they are shown.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON per table or key.")
@with_store
async def ls(shelf: Shelf, table: str | None, limit: int, prefix: str, as_json: bool) -> int:
    """The tables, or the keys of one, in no order."""
    if table is None:
        return await ls_tables(shelf, limit, prefix, as_json=as_json)
    plain, handle = await shelf.plain(table)
    seen: set[bytes] = set()
    async for packed, stored in shelf.entries(handle):
        found = key_of(plain, packed)
        shown = found.get("key", f"--packed {found.get('packed')}")
        if packed in seen or not shown.startswith(prefix):
            continue
        if len(seen) == limit:
            click.echo(f"there are more than {limit:,}: --limit", err=True)
            break
        seen.add(packed)
        if as_json:
            click.echo(json.dumps({**found, "version": version_of(stored), "ttl_s": ends(stored)}))
        else:
            say(shown)
    return 0


async def ls_tables(shelf: Shelf, limit: int, prefix: str, *, as_json: bool) -> int:
    tables = {name: one for name, one in (await shelf.tables()).items() if name.startswith(prefix)}
    rows = [("table", "key", "value", "partitions", "on_expire", "schema: fields")]
    for name, one in list(tables.items())[:limit]:
        if isinstance(one, Unreadable):
            told_of: dict[str, Any] = {"unreadable": str(one)}
            rows.append((name, "", "", "", "", f"unreadable: {why(one)}"))
        else:
            told_of = {"key": one.key, "value": one.value, "partitions": one.partitions}
            told_of |= {"on_expire": one.keeps_expired, "schemas": one.schemas}
            schemas = "; ".join(f"{n}: {', '.join(names)}" if names else str(n) for n, names in one.schemas.items())
            rows.append((name, one.key, one.value, str(one.partitions), "yes" if one.keeps_expired else "", schemas))
        if as_json:
            click.echo(json.dumps({"table": name, **told_of}))
    if not as_json and len(rows) > 1:
        click.echo("\n".join(aligned(rows, right=(3,))))
    if len(tables) > limit:
        click.echo(f"there are {len(tables):,}: --limit", err=True)
    return 0


@state.command()
@table_argument
@key_argument
@packed_option
@click.option("--json", "as_json", is_flag=True, help="As an object of JSON, nothing cut.")
@with_store
async def get(shelf: Shelf, table: str, key: str, packed: bool, as_json: bool) -> int:
    """An entry: fields by name, version, when it expires."""
    plain, handle = await shelf.plain(table)
    stored = await shelf.entry(handle, key_bytes(plain, key, packed=packed))
    if stored is None:
        return absent(table, key)
    if as_json:
        click.echo(json.dumps({"table": table, "key": key, **told(plain, stored)}))
    else:
        say(f"{table} {key}")
        for line in lines(plain, stored):
            say(line)
    return 0


def absent(table: str, key: str) -> int:
    click.echo(printable(f"table {table!r} has no {key[:LONGEST_WHY]!r}"), err=True)
    return ABSENT


@state.command()
@table_argument
@key_argument
@click.argument("value", metavar="JSON")
@packed_option
@version_option
@click.option("--schema", type=click.IntRange(1, 65535), metavar="N", help="As a value of this one, not the newest.")
@click.option("--ttl", "ttl_s", type=click.FloatRange(0.001, 3.2e9), metavar="S", help="Expires then, not as before.")
@with_store
async def put(
    shelf: Shelf,
    table: str,
    key: str,
    value: str,
    packed: bool,
    version: int | None,
    schema: int | None,
    ttl_s: float | None,
) -> int:
    """Store an entry, unless somebody else was faster.

    Of a Record JSON is an object with all its fields; "-": it is read from standard input.
    """
    if value == "-":
        value = sys.stdin.buffer.read(LONGEST_INPUT).decode(errors="replace")
    plain, handle = await shelf.plain(table)
    name, payload = key_bytes(plain, key, packed=packed), plain.pack(value, schema)
    stored = await shelf.entry(handle, name)
    now_ms = time.time_ns() // 1_000_000
    if ttl_s is not None:
        deadline_ms = now_ms + round(ttl_s * 1000)
    else:  # One that has expired is no longer there for those who use the table.
        deadline_ms = stored.deadline_ms if isinstance(stored, Stored) and stored.deadline_ms > now_ms else 0
    written_as = await change(shelf, handle, name, stored, version, payload, deadline_ms)
    say(f"{table} {key[:LONGEST_WHY]}: stored, version {written_as}")
    return 0


@state.command("del")
@table_argument
@key_argument
@packed_option
@version_option
@with_store
async def delete(shelf: Shelf, table: str, key: str, packed: bool, version: int | None) -> int:
    """Remove an entry, unless somebody else was faster."""
    plain, handle = await shelf.plain(table)
    name = key_bytes(plain, key, packed=packed)
    stored = await shelf.entry(handle, name)
    if stored is None:
        return absent(table, key)
    await change(shelf, handle, name, stored, version, None, 0)
    was = f"version {stored.version}" if isinstance(stored, Stored) else "no entry"
    say(f"{table} {key[:LONGEST_WHY]}: removed, it was {was}")
    return 0


async def change(
    shelf: Shelf,
    handle: int,
    key: bytes,
    stored: Stored | Unreadable | None,
    version: int | None,
    payload: bytes | None,
    deadline_ms: int,
) -> int:
    """The version that it was stored as, on the condition that ``stored`` still stands there; what is no entry has no
    version, and whatever stands there then is replaced."""
    stands = version_of(stored)
    if version is not None and version != stands:
        raise conflict(stands, version)
    mine = Versions(await shelf.store.enlist(), random.random()).take()
    recent = stored.recent if isinstance(stored, Stored) else b""
    expected = None if isinstance(stored, Unreadable) else [stands]
    outcome: Written = await shelf.ask(
        shelf.store.write, handle, [key], expected, mine, [payload], deadlines=[deadline_ms], recents=[recent]
    )
    for _, error in outcome.failed:
        raise error
    for _, other in outcome.conflicts:
        raise conflict(other.version if other else 0, stands)
    return mine


def conflict(stands: int, expected: int) -> StateError:
    here = f"version {stands} stands there" if stands else "nothing stands there"
    return StateError(f"somebody was faster: {here}, not {expected}; nothing was changed")


@state.command()
@click.argument("table", required=False)
@click.option("--json", "as_json", is_flag=True, help="As an object of JSON.")
@with_store
async def stats(shelf: Shelf, table: str | None, as_json: bool) -> int:
    """The store's state, and what the tables hold.

    All entries are read for it.
    """
    tables: dict[str, Any] = {}
    described = await shelf.tables() if table is None else {table: (await shelf.plain(table))[0].description}
    for name, one in described.items():
        counts = dict.fromkeys(("entries", "bytes", "longest", "expiring", "unreadable"), 0)
        try:
            if isinstance(one, Unreadable):
                raise one
            plain, handle = shelf.opened(name, one)
        except StateError as error:
            tables[name] = {"undescribed": why(error)}
            continue
        async for packed, stored in shelf.entries(handle):
            size = len(packed) + (len(stored.payload) if isinstance(stored, Stored) else 0)
            counts["entries"] += 1
            counts["bytes"] += size
            counts["longest"] = max(counts["longest"], size)
            counts["expiring"] += ends(stored) is not None
            counts["unreadable"] += reason(plain, packed, stored) is not None
        tables[name] = counts
    client = shelf.store.statistics()
    if as_json:
        store = {"url": str(shelf.store.url), "state": "up", **client}
        click.echo(json.dumps({"store": store, "tables": tables}))
        return 0
    say(f"{shelf.store.url}: up, {len(tables):,} tables")
    rows: list[tuple[str, ...]] = [("table", "entries", "bytes", "longest", "expiring", "unreadable")]
    for name, found in tables.items():
        if "undescribed" in found:
            complain(StateError(printable(f"table {name!r}: {found['undescribed']}")))
        else:
            rows.append((name, *(f"{count:,}" for count in found.values())))
    if len(rows) > 1:
        click.echo("\n".join(aligned(rows, right=(1, 2, 3, 4, 5))))
    return 0


def reason(plain: Plain, packed: bytes, stored: Stored | Unreadable) -> str | None:
    """Why an entry cannot be read."""
    if isinstance(stored, Unreadable):
        return str(stored)
    if bad := key_of(plain, packed).get("unreadable"):
        return str(bad)
    try:
        plain.read(stored.payload)
    except Unreadable as error:
        return str(error)
    return None


@state.command()
@table_argument
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON per entry.")
@with_store
async def quarantine(shelf: Shelf, table: str, limit: int, as_json: bool) -> int:
    """Entries that cannot be read, and why.

    All entries of the table are read for it.
    """
    plain, handle = await shelf.plain(table)
    seen: set[bytes] = set()
    async for packed, stored in shelf.entries(handle):
        if packed in seen or (because := reason(plain, packed, stored)) is None:
            continue
        if len(seen) == limit:
            click.echo(f"there are more than {limit:,}: --limit", err=True)
            break
        seen.add(packed)
        found = key_of(plain, packed)
        if as_json:
            click.echo(json.dumps({**found, "version": version_of(stored), "unreadable": because}))
        else:
            say(f"{found.get('key', '--packed ' + found.get('packed', ''))}: {because[:LONGEST_WHY]}")
    return 0
