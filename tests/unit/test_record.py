"""Keys and values as bytes: what is packed is read again, what is not the table's type is refused, upgrades."""

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libvnf.errors import ConfigError, StateError, Unreadable
from libvnf.state.record import MAX_KEY_BYTES, MAX_VALUE_BYTES, KeyCodec, Record, ValueCodec


class Session(Record):
    user: str
    hits: int = 0


class Longer(Record):
    user: str
    hits: int = 0
    tags: tuple[str, ...] = ()


class Renamed(Record):
    name: str
    hits: int = 0
    since: int = 7


class WithList(Record):
    items: list[int] = msgspec.field(default_factory=list)


class Nested(Record):
    inner: Session
    more: tuple[Session, ...] = ()


class NestedList(Record):
    inner: WithList


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass
class Mutable:
    x: int


@dataclasses.dataclass
class Refusing:
    x: int

    def __post_init__(self) -> None:
        raise RuntimeError("no")


scalars = st.text() | st.binary() | st.integers(-(2**63), 2**64 - 1)
any_key = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


# --- keys -------------------------------------------------------------------------------------------------------------


@given(any_key)
def test_a_key_of_any_type_is_read_again_as_it_was(key: Any) -> None:
    codec: KeyCodec[Any] = KeyCodec("t", object)
    again = codec.unpack(codec.pack(key))
    assert again == key
    assert type(again) is type(key)


@given(st.binary(max_size=40))
def test_bytes_that_are_no_key_are_unreadable_and_nothing_else(packed: bytes) -> None:
    codec: KeyCodec[Any] = KeyCodec("t", object)
    try:
        key = codec.unpack(packed)
    except Unreadable:
        return
    hash(key)
    codec.pack(key)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (str, "a", b"a"),
        (bytes, b"a", bytearray(b"a")),
        (int, 1, True),
        (int, -1, 1.0),
        (tuple[str, int], ("a", 1), ("a", True)),
        (tuple[str, int], ("a", 1), ("a",)),
        (tuple[str, ...], ("a", "b"), ("a", 1)),
        (tuple[str, tuple[int, ...]], ("a", (1, 2)), ("a", ("1",))),
        (tuple, (1, "a"), (1, None)),
        (object, (1, (b"",)), None),
        (object, "x", [1]),
    ],
)
def test_a_key_of_another_type_is_refused_and_both_are_named(kind: Any, good: Any, bad: Any) -> None:
    codec: KeyCodec[Any] = KeyCodec("sessions", kind)
    assert codec.unpack(codec.pack(good)) == good
    with pytest.raises(ConfigError, match=rf"'sessions': key of type {type(bad).__name__}, expected"):
        codec.pack(bad)


def test_a_stored_key_of_another_type_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="stored key of type int, expected str"):
        KeyCodec[str]("t", str).unpack(KeyCodec[int]("t", int).pack(5))


def test_a_key_in_another_form_than_ours_is_none() -> None:
    codec = KeyCodec[int]("t", int)
    assert codec.unpack(b"\x01") == 1
    with pytest.raises(Unreadable, match="as this code packs them"):
        codec.unpack(b"\xd3" + (1).to_bytes(8, "big"))


def test_a_key_type_that_cannot_be_is_refused_at_the_table() -> None:
    for kind in (float, list, Session, tuple[str, float], None, "str"):
        with pytest.raises(ConfigError, match="expected str, bytes, int, a tuple of these, or object"):
            KeyCodec("t", kind)


def test_an_oversized_key_is_refused_at_the_call() -> None:
    codec = KeyCodec[str]("t", str)
    codec.pack("x" * (MAX_KEY_BYTES - 3))
    with pytest.raises(StateError, match="key of 1025 bytes, at most 1024"):
        codec.pack("x" * (MAX_KEY_BYTES - 2))


@pytest.mark.parametrize("key", [2**64, -(2**63) - 1, "\ud800"])
def test_a_key_that_has_no_bytes_is_refused_at_the_call(key: Any) -> None:
    with pytest.raises(ConfigError, match="key cannot be stored"):
        KeyCodec[Any]("t", object).pack(key)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "shared"),
    [
        (Session, Session("a", 3), True),
        (Nested, Nested(Session("a"), (Session("b"),)), True),
        (WithList, WithList([1, 2]), False),
        (NestedList, NestedList(WithList([1])), False),
        (Point, Point(1, 2), True),
        (Mutable, Mutable(1), False),
        (str, "x", True),
        (bytes, b"x", True),
        (int, -5, True),
        (float, 0.5, True),
        (float, 3, True),
        (bool, False, True),
        (list, [1, "a", None], False),
        (list[int], [1], False),
        (dict, {"a": [1]}, False),
        (dict[str, Session], {"a": Session("b")}, False),
        (tuple[int, ...], (1, 2), True),
        (tuple[list[int], ...], ([1],), False),
        (frozenset[int], frozenset({1}), True),
        (object, {"a": 1}, False),
    ],
)
def test_a_value_is_read_again_as_it_was(kind: Any, value: Any, shared: bool) -> None:
    codec: ValueCodec[Any] = ValueCodec("t", kind)
    assert codec.unpack(codec.pack(value)) == value
    assert codec.shared is shared


@pytest.mark.parametrize(
    ("kind", "bad"),
    [(Session, Longer("a")), (Session, "a"), (int, True), (str, b"a"), (list, (1,)), (dict[str, int], []), (Point, 1)],
)
def test_a_value_of_another_type_is_refused_at_the_call(kind: Any, bad: Any) -> None:
    with pytest.raises(ConfigError, match=rf"'t': value of type {type(bad).__name__}, expected"):
        ValueCodec[Any]("t", kind).pack(bad)


@pytest.mark.parametrize("kind", [str, object, Session])
def test_none_is_no_value_and_the_message_says_what_to_use(kind: Any) -> None:
    with pytest.raises(ConfigError, match="use delete"):
        ValueCodec[Any]("t", kind).pack(None)
    with pytest.raises(Unreadable):
        ValueCodec[Any]("t", kind).unpack(b"\0\1\xc0")


@pytest.mark.parametrize("value", [{"a": complex(1)}, [2**64], ["\ud800"], [object()]])
def test_a_value_that_has_no_bytes_is_refused_at_the_call(value: Any) -> None:
    with pytest.raises(ConfigError, match="value cannot be stored"):
        ValueCodec[Any]("t", object).pack(value)


def test_a_list_that_holds_itself_is_refused_at_the_call() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="value cannot be stored"):
        ValueCodec[Any]("t", list).pack(loop)


def test_an_oversized_value_is_refused_at_the_call() -> None:
    codec = ValueCodec[bytes]("t", bytes)
    most = MAX_VALUE_BYTES - 7  # 2 of the schema, 5 in front of so many bytes (bin 32)
    assert len(codec.pack(bytes(most))) == MAX_VALUE_BYTES
    with pytest.raises(StateError, match=f"value of {MAX_VALUE_BYTES + 1} bytes, at most {MAX_VALUE_BYTES}"):
        codec.pack(bytes(most + 1))


def test_a_field_of_the_wrong_type_is_found_when_it_is_read() -> None:
    wrong = Session(5)  # type: ignore[arg-type]
    codec = ValueCodec[Session]("t", Session)
    with pytest.raises(Unreadable, match="Expected `str`, got `int`"):
        codec.unpack(codec.pack(wrong))


@pytest.mark.parametrize("kind", [complex, int | None, None, "Session", object | None, type, dict[str, complex]])
def test_a_value_type_that_cannot_be_is_refused_at_the_table(kind: Any) -> None:
    with pytest.raises(ConfigError, match="'t': values of type"):
        ValueCodec("t", kind)


@given(st.sampled_from([Session, WithList, Nested, int, str, dict, object, list[int]]), st.binary(max_size=60))
def test_bytes_that_are_no_value_are_unreadable_and_nothing_else(kind: Any, payload: bytes) -> None:
    codec: ValueCodec[Any] = ValueCodec("t", kind, 2, {1: lambda old: old})
    for stored in (payload, b"\0\1" + payload, b"\0\2" + payload):
        try:
            assert codec.unpack(stored) is not None
        except Unreadable as error:
            assert "'t'" in str(error)


def test_an_unreadable_value_stays_so_whatever_its_class_raises() -> None:
    with pytest.raises(Unreadable, match="no"):
        ValueCodec[Refusing]("t", Refusing).unpack(b"\0\1\x81\xa1x\x01")


@pytest.mark.parametrize(
    "deep", [b"\x91" * 200_000, b"\x81\x01" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_deep_or_lying_bytes_are_unreadable(deep: bytes) -> None:
    with pytest.raises(Unreadable):
        ValueCodec[Any]("t", object).unpack(b"\0\1" + deep)


# --- records and their schemas ----------------------------------------------------------------------------------------


def test_a_record_is_frozen_and_replaced() -> None:
    one = Session("a")
    assert one.replace(hits=2) == Session("a", 2)
    with pytest.raises(AttributeError):
        one.hits = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        one.replace(hats=2)


def test_fields_added_at_the_end_are_read_both_ways_without_a_new_schema() -> None:
    old, new = ValueCodec[Session]("t", Session), ValueCodec[Longer]("t", Longer)
    assert new.unpack(old.pack(Session("a", 1))) == Longer("a", 1)
    assert old.unpack(new.pack(Longer("a", 1, ("x",)))) == Session("a", 1)
    new.learn({1: old.fields()})
    old.learn({1: new.fields()})


def test_other_changes_of_fields_under_one_schema_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"schema 1 is stored with the fields user, hits.*give schema=2"):
        ValueCodec[Renamed]("t", Renamed).learn({1: ["user", "hits"]})


def test_an_older_value_is_upgraded_step_by_step_with_names_and_defaults() -> None:
    seen: list[Any] = []

    def first(old: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(old))
        return {"user": old["login"], "hits": 1}

    def second(old: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(old))
        return {"name": old["user"].upper(), "hits": old["hits"]}

    codec = ValueCodec[Renamed]("t", Renamed, 3, {1: first, 2: second})
    codec.learn({1: ["login"], 2: ["user", "hits"]})
    assert codec.unpack(b"\0\1" + msgspec.msgpack.encode(["ann"])) == Renamed("ANN", 1, 7)
    assert seen == [{"login": "ann"}, {"user": "ann", "hits": 1}]
    assert codec.unpack(b"\0\2" + msgspec.msgpack.encode(["bob", 4])) == Renamed("BOB", 4, 7)
    assert codec.unpack(codec.pack(Renamed("c"))) == Renamed("c")


def test_plain_values_and_dataclasses_are_upgraded_too() -> None:
    assert ValueCodec[int]("t", int, 2, {1: int}).unpack(b"\0\1\xa242") == 42
    codec = ValueCodec[Point]("t", Point, 2, {1: lambda old: {"x": old["a"]}})
    assert codec.unpack(b"\0\1" + msgspec.msgpack.encode({"a": 5})) == Point(5, 0)


@pytest.mark.parametrize(
    ("upgrade", "why"),
    [
        (lambda old: {"hits": 1}, "no field name"),
        (lambda old: {"name": "a", "nmae": 1}, "fields that there are not: nmae"),
        (lambda old: {"name": 5}, "Expected `str`, got `int`"),
        (lambda old: old["missing"], "missing"),
        (lambda old: None, "Expected `array`, got `None`"),
    ],
)
def test_an_upgrade_that_goes_wrong_makes_that_value_unreadable(upgrade: Any, why: str) -> None:
    codec = ValueCodec[Renamed]("t", Renamed, 2, {1: upgrade})
    codec.learn({1: ["user"]})
    with pytest.raises(Unreadable, match=why):
        codec.unpack(b"\0\1\x91\xa1a")


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\0\3\x91\xa1a", "schema 3, newer than 2"),
        (b"\0\0\x91\xa1a", "schema 0, and no upgrade"),
        (b"\0\1\x91\xa1a", "whose fields are not known"),
        (b"\0", "no upgrade"),
        (b"", "no upgrade"),
    ],
)
def test_other_schemas_without_a_way_here_are_unreadable(payload: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        ValueCodec[Renamed]("t", Renamed, 2, {1: lambda old: old}).unpack(payload)


@pytest.mark.parametrize(
    ("schema", "upgrades"), [(0, {}), (65536, {}), (1, {1: int}), (1, {0: int}), (3, {1: int}), (True, {})]
)
def test_schemas_and_upgrades_that_do_not_meet_are_refused(schema: int, upgrades: dict[int, Any]) -> None:
    with pytest.raises(ConfigError, match="'t'"):
        ValueCodec[int]("t", int, schema, upgrades)
