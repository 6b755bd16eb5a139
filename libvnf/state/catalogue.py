"""What all code that shares a store must agree on, per table; stored beside the tables, in one of its own.

A Record is stored without its fields' names. Here stand those of every schema that was ever used, so that upgrade
functions get dicts and operators see names; and the settings without which entries are not found again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

from ..errors import ConfigError, DurabilityUnknown, StateError, StateFull, StoreUnavailable, Unreadable
from .record import KeyCodec, Record, ValueCodec
from .store import FULL, Store, Stored, Versions, Written

__all__ = ["CATALOGUE", "KEYS", "VALUES", "Description", "enrol", "passes"]

CATALOGUE = ".tables"
"""The name of the table of tables; it has one partition."""


class Description(Record):
    """What is known of one table. ``key`` and ``value`` are the types' names, for people."""

    partitions: int
    keeps_expired: bool
    key: str
    value: str
    schemas: dict[int, list[str]]

    def with_those_of(self, stored: Description | None, table: str) -> Description:
        """This one, with the schemas that are stored. ``ConfigError`` when they cannot share entries."""
        if stored is None:
            return self
        if self.partitions != stored.partitions:
            raise ConfigError(
                f"table {table!r}: partitions={self.partitions}, it is stored with partitions={stored.partitions}"
            )
        if self.keeps_expired != stored.keeps_expired:
            mine, theirs = ("with" if keeps else "without" for keeps in (self.keeps_expired, stored.keeps_expired))
            raise ConfigError(
                f"table {table!r}: {mine} on_expire, it is stored {theirs}: every replica has the handler, or none has"
            )
        schemas = dict(stored.schemas)
        for schema, names in self.schemas.items():
            # Fields are added at the end: the longer list has the names of both.
            schemas[schema] = max(names, schemas.get(schema, []), key=len)
        return self.replace(schemas=schemas)


KEYS: KeyCodec[str] = KeyCodec(CATALOGUE, str)
VALUES: ValueCodec[Description] = ValueCodec(CATALOGUE, Description)


def enrol(
    store: Store,
    versions: Versions,
    table: str,
    mine: Description,
    learn: Callable[[dict[int, list[str]]], object],
    done: Callable[[StateError | ConfigError | None], object],
) -> None:
    """Reads what is known of the table, has its schemas learned (:meth:`ValueCodec.learn`, whose ``ConfigError`` ends
    it), and adds ours. Again from the start when another replica was faster. An entry that cannot be read is an error:
    newer code may need it as it is."""
    handle, key = store.table(CATALOGUE, partitions=1), KEYS.pack(table)

    def found(answers: list[Stored | StateError | None]) -> None:
        (answer,) = answers
        if isinstance(answer, StateError):
            strange = isinstance(answer, Unreadable)
            done(Unreadable(f"the description of table {table!r}: {answer}") if strange else answer)
            return
        try:
            known = None if answer is None else VALUES.unpack(answer.payload)
            if known is not None:
                learn(known.schemas)
            both = mine.with_those_of(known, table)
            if known is not None and both.schemas == known.schemas:
                done(None)
                return
            expected = 0 if answer is None else answer.version
            store.write(handle, [key], [expected], versions.take(), [VALUES.pack(both)], written)
        except (StateError, ConfigError) as error:
            done(error)

    def written(outcome: Written) -> None:
        if outcome.conflicts:
            found([outcome.conflicts[0][1]])
        else:
            done(outcome.failed[0][1] if outcome.failed else None)

    store.read(handle, [key], found)


def passes(error: StateError | ConfigError) -> TypeGuard[StateError]:
    """Whether it helps to enrol again later."""
    return isinstance(error, (StoreUnavailable, StateFull, DurabilityUnknown)) or (
        isinstance(error, StateError) and str(error).startswith(FULL)
    )
