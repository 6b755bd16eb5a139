"""An embedded store that has ended is begun again until that succeeds, whatever stands in the way; and a drain that
raises is told."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from libvnf import runtime
from libvnf.errors import ConfigError, StateError
from libvnf.state import redis
from libvnf.state.embedded import Embedded
from libvnf.state.redis import RedisStore
from libvnf.state.url import StoreURL


def embedded(tmp_path: Path) -> RedisStore:
    store = RedisStore(StoreURL.parse(f"redis+embedded://{tmp_path}"))
    store._loop = asyncio.get_running_loop()
    return store


async def test_a_revival_goes_on_whatever_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = embedded(tmp_path), list[str]()
    store.on_state = told.append
    ways = [ConfigError("no server's program"), StateError("no descriptors")]

    async def begin() -> None:
        if ways:
            raise ways.pop(0)

    monkeypatch.setattr(redis, "REVIVE_S", 0.0)
    monkeypatch.setattr(store._embedded, "open", begin)
    store._revive()
    assert store._reviving is not None
    await store._reviving
    assert told == ["down: no server's program", "down: no descriptors"]
    await store.close()


async def test_a_store_is_closed_whatever_its_revival_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = embedded(tmp_path)
    table = store.table("t")

    async def begin() -> None:
        raise RuntimeError("unheard of")

    monkeypatch.setattr(store._embedded, "open", begin)
    store._revive()
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StateError, match="closed"):
        store.read(table, [b"k"], lambda answer: None)
    assert store._reviving is not None
    assert isinstance(store._reviving.exception(), RuntimeError)


@pytest.mark.parametrize("what", ["the lock", "the keeper"])
async def test_what_the_system_refuses_is_the_stores_error(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if what == "the lock":
        monkeypatch.setattr(fcntl, "flock", refuse)
    else:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(StateError, match="No locks available" if what == "the lock" else "No such file"):
        await Embedded(str(tmp_path / "store"), "a program").open()


async def test_a_drain_that_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    async def drain(until_s: float) -> None:
        raise RuntimeError("unheard of")

    monkeypatch.setattr(runtime, "say", lambda vnf, line: said.append(line))
    vnf: Any = SimpleNamespace(tables=SimpleNamespace(drain=drain, unstored={"t": 1}))
    await runtime.store(vnf, 0.0, asyncio.get_running_loop().create_future())
    assert said == ["storing ended with RuntimeError('unheard of')", "table t: 1 change not stored"]
