"""A table as one sees it who has its bytes and its description, and none of its types: an operator.

Keys and values are told as JSON. What JSON lacks has a form of its own, an object with one key: ``{"$hex": "0a1b"}``
are bytes, ``{"$map": [[key, value], …]}`` a mapping whose keys are not all texts, ``{"$float": "nan"}``, ``{"$time":
"2026-01-31T12:00:00+00:00"}``. Every value has exactly one form, and reading it gives the same value again.

Everything that is read here is hostile: it ends in a value or in :class:`Unreadable`, whose text may hold anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ..config import closest
from ..errors import ConfigError, Unreadable
from .catalogue import Description
from .record import KeyCodec, ValueCodec, decode_plain, tupled

__all__ = ["Plain", "from_json", "to_json", "written"]

KEY_TYPES: dict[str, Any] = {"str": str, "bytes": bytes, "int": int, "tuple": tuple}
DEEPEST = 64
VALUE_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bytes": (bytes,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "list": (list,),
    "tuple": (list,),
    "dict": (dict,),
}
"""As msgpack has them. Of a type that is not here no more is known than its name."""


def to_json(value: Any, depth: int = 0) -> Any:
    """What ``json.dumps`` takes, of what msgpack can hold. ``ValueError`` for what is nested too deep."""
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": str(value)}
        case bytes():
            return {"$hex": value.hex()}
        case datetime():
            return {"$time": value.isoformat()}
        case list() | tuple():
            return [to_json(item, depth + 1) for item in value]
        case dict():
            if all(type(key) is str for key in value) and not (len(value) == 1 and next(iter(value)).startswith("$")):
                return {key: to_json(item, depth + 1) for key, item in value.items()}
            return {"$map": [[to_json(key, depth + 1), to_json(item, depth + 1)] for key, item in value.items()]}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def from_json(text: str) -> Any:
    """The value that ``text`` tells; ``ConfigError``."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"not the JSON that is expected: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    if len(pairs) != 1 or not pairs[0][0].startswith("$"):
        return found
    [(form, inner)] = pairs
    if form == "$map":
        if not isinstance(inner, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in inner):
            raise ValueError("$map: expected [[key, value], …]")
        mapping = {tupled(key): value for key, value in inner}
        if len(mapping) != len(inner):
            raise ValueError("$map: a key stands twice")
        return mapping
    make = FORMS.get(form)
    if make is None or not isinstance(inner, str):
        raise ValueError(f"{form}: expected {', '.join(FORMS)} with a text, or $map")
    return make(inner)


FORMS: dict[str, Callable[[str], Any]] = {"$hex": bytes.fromhex, "$float": float, "$time": datetime.fromisoformat}


def _no_constant(text: str) -> Any:
    raise ValueError(f'{text}: expected {{"$float": "…"}}')


def written(value: Any) -> str:
    """A value's form as one line fit for a terminal, which :func:`from_json` reads."""
    text = json.dumps(to_json(value), ensure_ascii=False)
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


class Plain:
    """Keys and values of the table ``name``, as its description has them.

    A key of a ``str`` table is written as it is, or as JSON if it begins with a quotation mark; of a ``bytes`` table in
    hexadecimal, of an ``int`` table in decimal, of all others as JSON, a tuple as a list.
    """

    def __init__(self, name: str, description: Description) -> None:
        self.name, self.description = name, description
        self._keys: KeyCodec[Any] = KeyCodec(name, KEY_TYPES.get(description.key, object))

    # --- keys

    def key(self, text: str) -> bytes:
        """The packed key that ``text`` says; ``ConfigError``."""
        kind = self.description.key
        try:
            match kind:
                case "str" if not text.startswith('"'):
                    return self._keys.pack(text)
                case "bytes":
                    return self._keys.pack(bytes.fromhex(text))
                case "int":
                    return self._keys.pack(int(text))
                case _:
                    return self._keys.pack(tupled(from_json(text)))
        except ConfigError as error:
            raise ConfigError(f"key {text[:100]!r} of {kind} table {self.name!r}: {error}") from None
        except RecursionError:
            raise ConfigError(f"key of table {self.name!r}: nested too deep") from None
        except ValueError:
            expected = "hexadecimal digits" if kind == "bytes" else "a decimal number"
            raise ConfigError(f"key {text[:100]!r} of table {self.name!r}: expected {expected}") from None

    def shown(self, packed: bytes) -> str:
        """What :meth:`key` reads; ``Unreadable``."""
        key = self._keys.unpack(packed)
        match self.description.key:
            case "str" if key and key.isprintable() and key[0] != '"' and key == key.strip():
                return str(key)
            case "bytes":
                return str(key.hex())
            case "int":
                return str(key)
        return self._written(key)

    def _written(self, value: Any) -> str:
        try:
            return written(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise Unreadable(f"table {self.name!r}: what cannot be shown: {error}") from None

    # --- values

    def read(self, payload: bytes) -> tuple[int, Any, list[str]]:
        """The schema, the value, and its fields' names if it has such: then it is a list of at most as many.

        ``Unreadable`` for what no code that uses the table could have stored: an unknown schema, no MessagePack,
        nothing of the kind that the value's type is. What only the type itself knows is not looked at.
        """
        schema = int.from_bytes(payload[:2], "big")
        try:
            if len(payload) < 3:
                raise ValueError("too short")
            if schema not in self.description.schemas:
                known = ", ".join(map(str, sorted(self.description.schemas)[:8]))
                raise ValueError(f"schema {schema}, none of those that were ever used: {known}")
            value = decode_plain(payload[2:])
            to_json(value)
            names = self.description.schemas[schema]
            self._check(value, names, schema)
        except Exception as error:
            raise Unreadable(f"{len(payload)} bytes that are no {self.description.value}: {error}") from None
        return schema, value, names

    def _check(self, value: Any, names: list[str], schema: int) -> None:
        if value is None:
            raise ValueError("None is no value")
        if names:
            if type(value) is not list:
                raise ValueError(f"{type(value).__name__}, expected a list of fields")
            if len(value) > len(names):
                raise ValueError(f"{len(value)} fields, schema {schema} has {len(names)}")
        elif (kinds := VALUE_TYPES.get(self.description.value)) and type(value) not in kinds:
            raise ValueError(f"{type(value).__name__}, expected {self.description.value}")

    def pack(self, text: str, schema: int | None = None) -> bytes:
        """The value that ``text`` says, as JSON: of a Record an object with all its fields. ``schema``: that one, not
        the newest that was used. ``ConfigError``; ``StateError`` when it is too long."""
        known = self.description.schemas
        if schema is None and known:
            schema = max(known)
        if schema not in known:
            listed = ", ".join(map(str, sorted(known))) or "none"
            raise ConfigError(f"table {self.name!r} has no schema {schema}; it has {listed}")
        value, names = from_json(text), known[schema]
        if names:
            if not isinstance(value, dict):
                raise ConfigError(f"table {self.name!r}: expected an object with the fields {', '.join(names)}")
            for name in value:
                if name not in names:
                    hint = closest(name, names) if isinstance(name, str) else ""
                    raise ConfigError(f"table {self.name!r} has no field {name!r}: expected {', '.join(names)}{hint}")
            if missing := [name for name in names if name not in value]:
                raise ConfigError(f"table {self.name!r}: without {', '.join(missing)}: expected all fields")
            value = [value[name] for name in names]
        try:
            to_json(value)
            self._check(value, names, schema)
        except ValueError as error:
            raise ConfigError(f"table {self.name!r}: {error}") from None
        return ValueCodec(self.name, object, schema).pack(value)
