"""Keys and values as an operator writes and reads them, by a table's description alone."""

import datetime as dt
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libvnf.errors import ConfigError, Unreadable, VNFError
from libvnf.state.catalogue import Description
from libvnf.state.plain import Plain, from_json, written
from libvnf.state.record import KeyCodec, Record, ValueCodec


class Session(Record):
    user: str
    hits: int = 0


SCHEMAS = {1: ["name"], 2: ["user", "hits"]}


def plain(key: str = "str", value: str = "Session", schemas: dict[int, list[str]] = SCHEMAS) -> Plain:
    return Plain("t", Description(64, False, key, value, schemas))


INTS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KEYS: st.SearchStrategy[Any] = st.recursive(
    INTS | TEXTS | st.binary(max_size=20), lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=5
)
TIMES = st.datetimes(dt.datetime(1970, 1, 2), timezones=st.just(dt.UTC))
VALUES: st.SearchStrategy[Any] = st.recursive(
    INTS | TEXTS | st.binary(max_size=20) | st.booleans() | st.none() | st.floats(allow_nan=False) | TIMES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXTS | INTS | st.binary(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(("kind", "keys"), [("str", TEXTS), ("bytes", st.binary()), ("int", INTS), ("object", KEYS)])
def test_a_key_that_is_shown_can_be_typed(kind: str, keys: st.SearchStrategy[Any]) -> None:
    @given(keys)
    def check(key: Any) -> None:
        packed = KeyCodec[Any]("t", object).pack(key)
        shown = plain(kind).shown(packed)
        assert shown.isprintable()
        assert plain(kind).key(shown) == packed

    check()


@given(VALUES)
def test_a_value_has_one_form_that_gives_it_again(value: Any) -> None:
    text = written(value)
    assert text.isprintable()
    assert msgspec.msgpack.encode(from_json(text)) == msgspec.msgpack.encode(value)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_unreadable(payload: bytes) -> None:
    for one in (plain(), plain(value="dict", schemas={1: []})):
        for data in (payload, b"\0\1" + payload):
            try:
                _, value, _ = one.read(data)
            except Unreadable:
                continue
            assert written(value).isprintable()


def test_a_record_is_read_and_packed_by_the_names_of_its_schema() -> None:
    packed = ValueCodec[Session]("t", Session, 2, {}).pack(Session("alice", 3))
    assert plain().read(packed) == (2, ["alice", 3], ["user", "hits"])
    assert plain().pack('{"hits": 3, "user": "alice"}') == packed
    assert plain().read(plain().pack('{"name": "bob"}', 1)) == (1, ["bob"], ["name"])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "too short"),
        (b"\0\2\xc0", "None is no value"),
        (b"\0\3\x90", "schema 3, none of those that were ever used: 1, 2"),
        (b"\0\2\x05", "int, expected a list of fields"),
        (b"\0\1\x92\1\2", "2 fields, schema 1 has 1"),
        (b"\0\2\xc1", "not valid"),
        (b"\0\2\x91\xd4\x07\x00", "extension type 7"),
        (b"\0\2" + b"\x91" * 100_000 + b"\x01", "recursion"),
    ],
)
def test_what_no_code_could_have_stored_is_unreadable(payload: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match="that are no Session: ") as error:
        plain().read(payload)
    assert reason in str(error.value) or reason in ("not valid", "recursion")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not the JSON"),
        ("[1, 2]", "an object with the fields user, hits"),
        ('{"user": "a"}', "without hits"),
        ('{"user": "a", "hits": 1, "hit": 2}', "no field 'hit': expected user, hits (did you mean hits?)"),
        ('{"user": "a", "user": "b", "hits": 1}', "twice"),
        ('{"user": NaN, "hits": 1}', "$float"),
        ('{"user": {"$hexx": "00"}, "hits": 1}', "$hexx"),
        ('{"user": {"$map": [[{}, 1]]}, "hits": 1}', "unhashable"),
        ('{"user": 99999999999999999999999, "hits": 1}', "cannot be stored"),
        ('{"user": "\\ud800", "hits": 1}', "cannot be stored"),
        ("[" * 100_000, "not the JSON"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(VNFError) as error:
        plain().pack(text)
    assert problem in str(error.value)


def test_a_plain_value_is_of_the_tables_type() -> None:
    assert plain(value="int", schemas={1: []}).pack("7") == b"\0\1\x07"
    with pytest.raises(ConfigError, match="str, expected int"):
        plain(value="int", schemas={1: []}).pack('"7"')
    with pytest.raises(ConfigError, match="no schema 9; it has 1, 2"):
        plain().pack("{}", 9)
    with pytest.raises(ConfigError, match="no schema None; it has none"):
        plain(schemas={}).pack("{}")


@pytest.mark.parametrize(
    ("kind", "text"), [("bytes", "xyz"), ("int", "one"), ("tuple", "7"), ("tuple", "a"), ("str", '"')]
)
def test_a_key_of_another_form_is_refused(kind: str, text: str) -> None:
    with pytest.raises(ConfigError, match="key "):
        plain(kind).key(text)


@given(st.integers(1, 1100), st.sampled_from([b"\x91", b"\x81\xa1a"]))
def test_what_is_nested_is_shown_or_unreadable_however_deep(depth: int, layer: bytes) -> None:
    one = plain("object", "object", {1: []})
    packed = layer * depth + b"\1"
    try:
        _, value, _ = one.read(b"\0\1" + packed)
    except Unreadable:
        assert depth > 64
    else:
        assert from_json(written(value)) == value
    try:
        assert one.key(one.shown(packed)) == packed
    except Unreadable as error:
        assert depth > 64 or layer != b"\x91", error


@pytest.mark.parametrize("depth", [300, 480, 600, 900, 990, 5000])
def test_a_key_nested_too_deep_is_refused(depth: int) -> None:
    with pytest.raises(VNFError):
        plain("object").key("[" * depth + "{}" + "]" * depth)
