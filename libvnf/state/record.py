"""Keys and values as bytes: MessagePack by msgspec, a value behind its schema version (2 octets, big-endian).

The author's errors are raised where they are made: a type at the table, a value or size at the call. The store's side
is hostile: what stands there is read as the table's type, or is :class:`Unreadable`, and nothing else happens.

A :class:`Record` is stored as an array, without names. So within one schema version fields are only added, at the end
and with a default. Any other change takes the next version, and a function that upgrades from the one before. What
other versions of the code called their fields is *learned* from the store, and held against this rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, dataclass_transform, get_args, get_origin

import msgspec
from msgspec import inspect

from ..errors import ConfigError, StateError, Unreadable

__all__ = ["MAX_KEY_BYTES", "MAX_VALUE_BYTES", "KeyCodec", "Record", "ValueCodec", "decode_plain", "tupled"]

K = TypeVar("K")
V = TypeVar("V")

MAX_KEY_BYTES = 1 << 10
MAX_VALUE_BYTES = 1 << 20

_encode = msgspec.msgpack.Encoder().encode
_UNWRITABLE = (TypeError, ValueError, OverflowError, RecursionError)


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, frozen=True, array_like=True):
    """A frozen record with typed fields: ``class Session(Record): user: str; hits: int = 0``."""

    replace = msgspec.Struct.__replace__  # a third of what a method around it takes
    """``replace(**changes)``: a copy with these fields changed; ``TypeError`` for a field that there is not."""


def _named(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


# --- keys -------------------------------------------------------------------------------------------------------------


class KeyCodec(Generic[K]):
    """Keys of one type: ``str``, ``bytes``, ``int`` (64 bits), tuples of these (also ``tuple[str, int]``), or
    ``object``: any of them. Exactly: a ``bool`` is no ``int``, for the bytes would differ where Python's keys do not.
    """

    def __init__(self, table: str, kind: Any) -> None:
        self._table, self._kind = table, kind
        self._fits = self._matcher(kind)
        self._class = kind if kind in (str, bytes, int) else object  # no key's class is `object` itself
        self._decode = msgspec.msgpack.Decoder(Any, ext_hook=_no_extension).decode

    def pack(self, key: K) -> bytes:
        """``ConfigError`` for a key of another type, ``StateError`` for one that is too long."""
        self.check(key)
        try:
            packed = _encode(key)
        except _UNWRITABLE as error:
            raise ConfigError(f"table {self._table!r}: key cannot be stored: {error}") from error
        if len(packed) > MAX_KEY_BYTES:
            raise StateError(f"table {self._table!r}: key of {len(packed)} bytes, at most {MAX_KEY_BYTES}")
        return packed

    def check(self, key: K) -> None:
        """``ConfigError`` for a key of another type."""
        if key.__class__ is not self._class and not self._fits(key):
            raise ConfigError(f"table {self._table!r}: key of type {type(key).__name__}, expected {_named(self._kind)}")

    def unpack(self, packed: bytes) -> K:
        """``Unreadable`` when these are no key of this type."""
        try:
            key = tupled(self._decode(packed))
            fits = self._fits(key)
        except Exception as error:
            raise Unreadable(f"table {self._table!r}: {len(packed)} bytes that are no key: {error}") from error
        if not fits:
            raise Unreadable(
                f"table {self._table!r}: stored key of type {type(key).__name__}, expected {_named(self._kind)}"
            )
        # The same key in another form would be a second entry, taken here for the first.
        if _encode(key) != packed:
            raise Unreadable(f"table {self._table!r}: {len(packed)} bytes that are no key as this code packs them")
        return key  # type: ignore[no-any-return]

    def _matcher(self, kind: Any) -> Callable[[Any], bool]:
        if kind in (str, bytes, int):
            return lambda key: type(key) is kind
        if kind is object or kind is Any:
            return _any_key
        if kind is tuple:
            return lambda key: type(key) is tuple and _any_key(key)
        if get_origin(kind) is tuple:
            items = get_args(kind)
            if len(items) == 2 and items[1] is ...:
                item = self._matcher(items[0])
                return lambda key: type(key) is tuple and all(map(item, key))
            each = [self._matcher(item) for item in items]
            if all(item in (str, bytes, int) for item in items):
                return lambda key: type(key) is tuple and tuple(map(type, key)) == items
            return lambda key: (
                type(key) is tuple and len(key) == len(each) and all(fits(k) for fits, k in zip(each, key, strict=True))
            )
        raise ConfigError(
            f"table {self._table!r}: keys of type {_named(kind)}, expected str, bytes, int, a tuple of these, or object"
        )


def _any_key(key: Any) -> bool:
    return type(key) in (str, bytes, int) or (type(key) is tuple and all(map(_any_key, key)))


def tupled(key: Any) -> Any:
    """Within keys msgpack's lists are tuples, as only these can be keys."""
    return tuple(map(tupled, key)) if type(key) is list else key


def _no_extension(code: int, _data: memoryview) -> Any:
    raise ValueError(f"extension type {code}")


# --- values -----------------------------------------------------------------------------------------------------------


class ValueCodec(Generic[V]):
    """Values of one type: a :class:`Record`, a dataclass, ``str``, ``bytes``, ``int``, ``float``, ``bool``, ``list``,
    ``dict``, ``tuple`` (also ``dict[str, int]``), and what msgspec has besides; ``object`` is any of them. ``None`` is
    none: it means absent.

    ``upgrades[n]`` makes of a value of schema ``n`` one of ``n + 1``; of a Record (and a dataclass) it gets and gives a
    dict of fields, of anything else the plain value. Records within are lists there.
    """

    shared: bool
    """Whether a value may be handed out again and again, because nothing in it can be changed. Where not, each reader
    gets one of its own from the bytes."""

    def __init__(
        self,
        table: str,
        kind: Any,
        schema: int = 1,
        upgrades: Mapping[int, Callable[[Any], Any]] | None = None,
    ) -> None:
        self._table, self._kind, self._schema = table, kind, schema
        if type(schema) is not int or not 1 <= schema <= 0xFFFF:
            raise ConfigError(f"table {table!r}: schema={schema!r}, expected 1…65535")
        self._upgrades = dict(upgrades or {})
        if sorted(self._upgrades) != list(range(schema - len(self._upgrades), schema)) or 0 in self._upgrades:
            known = sorted(self._upgrades)
            raise ConfigError(f"table {table!r}: upgrades from schema {known}, expected each one up to {schema - 1}")
        self._head = schema.to_bytes(2, "big")
        anything = kind is object or kind is Any
        self._class = _class_of(kind)
        self._classes = {int, float} if kind is float else {self._class}
        try:
            self._decode = msgspec.msgpack.Decoder(Any if anything else kind, ext_hook=_no_extension).decode
            nodes = list(_nodes(inspect.type_info(Any if anything else kind)))
        except (TypeError, NameError) as error:
            raise ConfigError(f"table {table!r}: values of type {_named(kind)}: {error}") from error
        several = isinstance(nodes[0], inspect.UnionType | inspect.LiteralType | inspect.NoneType)
        strange = [n.cls for n in nodes if isinstance(n, inspect.CustomType) and n.cls is not object]
        if strange or several or self._class is None:
            raise ConfigError(
                f"table {table!r}: values of type {_named(strange[0] if strange else kind)}, expected a Record, a "
                "dataclass, str, bytes, int, float, bool, list, dict, tuple, or object for any of them"
            )
        self.shared = all(map(_frozen, nodes))
        self._defaults = _array_fields(nodes[0])
        self._names = {schema: list(self._defaults)}

    def fields(self) -> list[str]:
        """The names, in the stored order, of what is stored without them; empty for all but Records."""
        return self._names[self._schema][:]

    def learn(self, stored: Mapping[int, Sequence[str]]) -> None:
        """The ``fields()`` of each schema that any version of the code has stored. ``ConfigError`` where one of the
        same schema had others in the same places."""
        mine = self.fields()
        for schema, names in stored.items():
            if schema != self._schema:
                self._names[schema] = list(names)
            elif any(a != b for a, b in zip(names, mine, strict=False)):
                raise ConfigError(
                    f"table {self._table!r}: schema {schema} is stored with the fields {', '.join(names)}, and has "
                    f"{', '.join(mine)} now: give schema={schema + 1} and upgrades={{{schema}: …}}, or add at the end"
                )

    def check(self, value: V) -> None:
        """``ConfigError`` for a value of another class; what is within is not looked at."""
        if value.__class__ not in self._classes:
            self._refuse(value)

    def pack(self, value: V) -> bytes:
        """``ConfigError`` for a value of another type, ``StateError`` for one that is too long."""
        if value.__class__ is not self._class and value.__class__ not in self._classes:
            self._refuse(value)
        try:
            packed = self._head + _encode(value)
        except _UNWRITABLE as error:
            raise ConfigError(f"table {self._table!r}: value cannot be stored: {error}") from error
        if len(packed) > MAX_VALUE_BYTES:
            raise StateError(f"table {self._table!r}: value of {len(packed)} bytes, at most {MAX_VALUE_BYTES}")
        return packed

    def unpack(self, payload: bytes) -> V:
        """``Unreadable`` when these bytes, upgraded where they are older, are no value of this type."""
        try:
            if payload[:2] == self._head:
                value = self._decode(payload[2:])
            else:
                value = self._upgraded(payload)
        except Exception as error:  # also of the author's upgrade functions and __post_init__
            raise self._unreadable(payload, error) from error
        if value is None:
            raise self._unreadable(payload, "None is no value")
        return value  # type: ignore[no-any-return]

    def _plain(self, payload: bytes) -> Any:
        """Fields by name where they are known, else the plain value, of whatever schema it is."""
        if len(payload) < 3:
            raise ValueError("too short")
        value: Any = decode_plain(payload[2:])
        names = self._names.get(int.from_bytes(payload[:2], "big"))
        return dict(zip(names, value, strict=False)) if names and type(value) is list else value

    def _upgraded(self, payload: bytes) -> Any:
        schema = int.from_bytes(payload[:2], "big")
        if schema > self._schema:
            raise ValueError(f"it is of schema {schema}, newer than {self._schema}: newer code has written it")
        if schema not in self._upgrades:
            raise ValueError(f"it is of schema {schema}, and no upgrade leads from there to {self._schema}")
        if self._defaults and schema not in self._names:
            raise ValueError(f"it is of schema {schema}, whose fields are not known")
        value = self._plain(payload)
        for step in range(schema, self._schema):
            value = self._upgrades[step](value)
        if self._defaults and isinstance(value, dict):
            if unknown := value.keys() - self._defaults.keys():
                raise ValueError(f"the upgrade gave fields that there are not: {', '.join(sorted(map(str, unknown)))}")
            value = [value[name] if name in value else default() for name, default in self._defaults.items()]
        return self._decode(_encode(value))

    def _refuse(self, value: object) -> None:
        if value is None:
            raise ConfigError(f"table {self._table!r}: None is no value: it means absent, use delete")
        if self._class is not object:
            raise ConfigError(
                f"table {self._table!r}: value of type {type(value).__name__}, expected {_named(self._kind)}"
            )

    def _unreadable(self, payload: bytes, why: object) -> Unreadable:
        return Unreadable(f"table {self._table!r}: {len(payload)} stored bytes are no {_named(self._kind)}: {why}")


decode_plain: Callable[[bytes], Any] = msgspec.msgpack.Decoder(Any, ext_hook=_no_extension).decode
"""MessagePack as what it says, of no type; raises whatever msgspec does."""


def _class_of(kind: Any) -> type | None:
    """The one class that values of this type have; None when there is none."""
    origin: Any = object if kind is Any else get_origin(kind) or kind
    return origin if isinstance(origin, type) else None


def _nodes(root: inspect.Type) -> Iterator[inspect.Type]:
    """The type and all types within it, each once."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        for name in node.__struct_fields__:
            inner = getattr(node, name)
            for one in inner if isinstance(inner, tuple) else (inner,):
                found = one.type if isinstance(one, inspect.Field) else one
                if isinstance(found, inspect.Type):
                    waiting.append(found)


def _frozen(node: inspect.Type) -> bool:
    if isinstance(node, inspect.StructType):
        return bool(node.cls.__struct_config__.frozen)
    if isinstance(node, inspect.DataclassType):
        return dataclasses.is_dataclass(node.cls) and bool(node.cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    changeable = (
        inspect.AnyType,
        inspect.CustomType,
        inspect.ListType,
        inspect.SetType,
        inspect.DictType,
        inspect.TypedDictType,
        inspect.ByteArrayType,
        inspect.MemoryViewType,
        inspect.RawType,
    )
    return not isinstance(node, changeable)


def _array_fields(node: inspect.Type) -> dict[str, Callable[[], Any]]:
    """Fields of what is stored as an array, in the stored order, each with what makes its default."""

    def required(name: str) -> Callable[[], Any]:
        def make() -> Any:
            raise ValueError(f"the upgrade gave no field {name}, which has no default")

        return make

    def default(field: inspect.Field) -> Callable[[], Any]:
        if field.default_factory is not msgspec.NODEFAULT:
            return field.default_factory  # type: ignore[no-any-return]
        return required(field.encode_name) if field.default is msgspec.NODEFAULT else lambda: field.default

    if not isinstance(node, inspect.StructType) or not node.array_like:
        return {}
    tag: dict[str, Callable[[], Any]] = {} if node.tag is None else {node.tag_field or "type": lambda: node.tag}
    return tag | {field.encode_name: default(field) for field in node.fields}
