"""Durability levels are values; a call asks for more than its table gives, never for less."""

from typing import Any

import pytest

from libvnf.errors import ConfigError
from libvnf.state.durability import Durability, local, replicated, write_back, write_through


def test_levels_are_compared_by_value() -> None:
    assert write_back(interval_s=0.1) == write_back() != write_back(every=5)
    assert replicated(1) != replicated(2)
    assert {local, write_through, write_back(), replicated(1)} == {write_through, local, replicated(1), write_back()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: write_back(interval_s=0),
        lambda: write_back(interval_s=float("nan")),
        lambda: write_back(interval_s=float("inf")),
        lambda: write_back(every=0),
        lambda: write_back(every=1.5),
        lambda: replicated(0),
        lambda: replicated(17),
        lambda: replicated(True),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(make: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make()


def test_a_call_asks_for_more_and_never_for_less() -> None:
    for table in (write_back(), write_through, replicated(1)):
        assert table.for_call(None, "t") == table == table.for_call(table, "t")
        assert table.for_call(write_through, "t") == write_through
        assert table.for_call(replicated(2), "t") == replicated(2)
        with pytest.raises(ConfigError, match=r"'t'.*a call can ask for write_through or replicated"):
            table.for_call(local, "t")
        with pytest.raises(ConfigError, match="'t'"):
            table.for_call(write_back(every=9), "t")
    with pytest.raises(ConfigError, match="'t' is local and has no store: replicated"):
        local.for_call(replicated(1), "t")


@pytest.mark.parametrize(
    ("durability", "text", "cached"),
    [
        (local, "local", True),
        (write_through, "write_through", False),
        (replicated(2), "replicated(2)", False),
        (write_back(every=3), "write_back(every=3)", True),
        (write_back(interval_s=2, on_request_end=True), "write_back(interval_s=2, on_request_end=True)", True),
    ],
)
def test_a_level_reads_as_it_is_written(durability: Durability, text: str, cached: bool) -> None:
    assert str(durability) == text
    assert durability.cached is cached
