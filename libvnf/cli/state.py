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
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import click

from ..control import printable
from ..errors import ConfigError, StateError, Unreadable, VNFError
from ..runtime import INTERRUPTED, USAGE, complain, terminable
from ..state.inspection import Shelf
from ..state.plain import Plain
from ..state.record import MAX_KEY_BYTES
from ..state.store import Stored, Versions, Written
from .ports import aligned
from .state_text import LONGEST_TEXT, LONGEST_WHY, ends, key_of, lines, reason, told, version_of, why

__all__ = ["state"]

ABSENT = 1
NOTHING = "nothing: some code could read each entry"
LONGEST_INPUT = 16 << 20


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
    if not seen and not as_json:
        say(NOTHING)
    return 0
