"""Entries of a table as a person reads them, and as JSON; what :mod:`libvnf.state.plain` could read of them."""

from __future__ import annotations

import time
from typing import Any

from ..control import printable
from ..errors import Unreadable
from ..state.plain import Plain, to_json, written
from ..state.store import Stored

__all__ = ["LONGEST_TEXT", "LONGEST_WHY", "ends", "key_of", "lines", "reason", "told", "version_of", "why"]

LONGEST_TEXT, LONGEST_WHY = 4000, 200


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} letters; --json has all)"


def why(error: BaseException) -> str:
    return printable(str(error)[:LONGEST_WHY])


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
