"""The stores of the tests themselves. A cluster that does not fail over would make tests of shared state worthless."""

import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.meta.tree import ROOT
from tests.peers import DEADLINE_S, Process
from tests.redis_cluster import SLOTS, Certificates, RedisCluster, RedisServer, members


def test_each_slot_has_a_master_and_each_master_a_replica(redis_cluster: RedisCluster) -> None:
    masters = redis_cluster.masters()
    assert sum(last - first + 1 for node in masters for first, last in members(node)[0].slots) == SLOTS
    assert len({redis_cluster.replica_of(master).port for master in masters}) == 3


def test_a_killed_master_is_replaced_and_comes_back_as_a_replica(redis_cluster: RedisCluster) -> None:
    master = redis_cluster.owner(redis_cluster.slot("key"))
    replica = redis_cluster.replica_of(master)
    master.kill()
    redis_cluster.wait_failover(master)
    assert redis_cluster.owner(redis_cluster.slot("key")) is replica
    redis_cluster.heal()
    assert redis_cluster.replica_of(replica) is master


def test_a_paused_master_is_replaced(redis_cluster: RedisCluster) -> None:
    master = redis_cluster.masters()[0]
    master.pause()
    redis_cluster.wait_failover(master)
    assert master not in redis_cluster.masters()
    redis_cluster.heal()
    assert master in redis_cluster.awake()
    assert master not in redis_cluster.masters()


def test_a_slot_moves_with_its_keys_and_clients_are_asked_to_follow(redis_cluster: RedisCluster) -> None:
    slot = redis_cluster.slot("{a}")
    source = redis_cluster.owner(slot)
    target = next(node for node in redis_cluster.masters() if node is not source)
    told = []

    def halfway() -> None:
        for number in range(10):
            try:
                source.ask("get", f"{{a}}{number}")
            except redis.exceptions.ResponseError as error:
                told.append(type(error))

    for number in range(10):
        source.ask("set", f"{{a}}{number}", number)
    redis_cluster.migrate(slot, target, halfway)
    assert told == [redis.exceptions.AskError] * 5
    assert redis_cluster.owner(slot) is target
    assert [target.ask("get", f"{{a}}{number}") for number in range(10)] == list(map(str, range(10)))


def test_a_killed_server_comes_back_on_its_port(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server({"appendonly": "yes", "appendfsync": "always"})
    server.ask("set", "key", "value")
    before = server.pid
    server.restart()
    assert server.pid != before
    assert server.ask("get", "key") == "value"


def test_servers_have_passwords_limits_and_tls(
    redis_server: Callable[..., RedisServer], certificates: Certificates
) -> None:
    server = redis_server({"requirepass": "secret", "maxmemory": "2mb"}, tls=certificates)
    assert server.ask("config", "get", "maxmemory") == ["maxmemory", "2097152"]
    with server.client(password="wrong") as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with server.client(ssl=False) as open_text, pytest.raises((redis.ConnectionError, redis.TimeoutError)):
        open_text.ping()


OWNER = """
import signal, sys
from pathlib import Path
from tests.redis_cluster import RedisServer
server = RedisServer(Path(sys.argv[1]))
server.start()
print("server", server.pid, flush=True)
signal.pause()
"""


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_the_tests_however_these_end(
    process: Callable[..., Process], tmp_path: Path, how: signal.Signals
) -> None:
    owner = process([sys.executable, "-c", OWNER, tmp_path], cwd=ROOT)
    server = os.pidfd_open(int(owner.wait_for(r"server (\d+)")[1]))
    try:
        owner.send_signal(how)
        assert select.select([server], [], [], DEADLINE_S)[0], "it lives on"
    finally:
        os.close(server)
