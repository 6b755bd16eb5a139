"""What the native client hands over is told in an order that tables can rely on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from libvnf.state import redis
from libvnf.state.redis import RedisStore
from libvnf.state.url import StoreURL


class Client:
    """Stands for the native one: answers ``call`` with 1, and hands over what it is given."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.handed: tuple[list[Any], list[Any]] = ([], [])

    def hand(self, done: list[Any], events: list[Any]) -> None:
        self.handed = (done, events)
        os.eventfd_write(self.wake_fd, 1)

    def call(self, settle: Any, _words: list[bytes]) -> None:
        self.hand([(settle, 1)], [])

    def go(self) -> None:
        pass

    def drain(self) -> tuple[list[BaseException], list[Any]]:
        os.eventfd_read(self.wake_fd)
        (answers, events), self.handed = self.handed, ([], [])
        for done, answer in answers:
            done(answer)
        return [], events

    def close(self) -> None:
        self.hand([], [])


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    client = Client()
    monkeypatch.setattr(redis, "StoreClient", lambda *_, **__: client)
    yield client
    os.close(client.wake_fd)


async def test_who_waited_for_a_value_takes_a_step_before_it_is_told_stale(client: Client) -> None:
    store, order = RedisStore(StoreURL.parse("redis://127.0.0.1")), []
    store.on_invalid = lambda table, keys: order.append(("stale", keys))
    await store.open()
    value: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        order.append(("has", await value))

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    client.hand([(value.set_result, "old")], [("invalid", 0, [b"k"])])
    await waiting
    await asyncio.sleep(0)
    assert order == [("has", "old"), ("stale", [b"k"])]
    await store.close()
