"""``vnf state`` as an operator meets it: against real servers, and against what should not stand in them."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from libvnf.cli.state import NOTHING, change
from libvnf.errors import StateError
from libvnf.state import Record, Tables, write_through
from libvnf.state.catalogue import CATALOGUE, Description
from libvnf.state.inspection import Shelf
from tests.integration.pages import commands
from tests.meta.tree import ROOT
from tests.peers import DEADLINE_S, Process
from tests.redis_cluster import RedisCluster, RedisServer


class Session(Record):
    user: str
    hits: int = 0


def state(url: str, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "libvnf", "state", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "VNF_STORE": url},
        input=typed,
        capture_output=True,
        text=True,
        check=False,
    )


def said(url: str, *words: str, typed: str = "") -> str:
    done = state(url, *words, typed=typed)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Tables]:
    """What a VNF has of the store, with the table ``sessions``."""
    tables = Tables(logging.getLogger("vnf.test"))
    tables.add("sessions", bytes, Session, write_through)
    await tables.start(url, lambda fn, *args: fn(*args), DEADLINE_S)
    try:
        yield tables
    finally:
        await tables.close()


async def filled(url: str) -> None:
    """What a VNF has left."""
    async with opened(url) as tables:
        pairs = tables.add("pairs", tuple, int, write_through)
        names = tables.add("names", str, dict, write_through)
        [sessions, *_] = tables
        await sessions.put(b"\1\2", Session("alice", 3), ttl_s=1000)
        await sessions.put(b"\3", Session("bob\x1b[31m"))
        await pairs.put(("10.0.0.1", 5000), 7)
        await names.put("über\n", {1: b"\0"})


async def test_tables_keys_and_entries_of_a_cluster_are_shown(redis_cluster: RedisCluster) -> None:
    await filled(redis_cluster.url)
    shown = said(redis_cluster.url, "ls")
    assert re.search(r"^  sessions +bytes +Session +64 +1: user, hits$", shown, re.MULTILINE)
    assert [line.split()[0] for line in shown.splitlines()] == ["table", "names", "pairs", "sessions"]
    assert sorted(said(redis_cluster.url, "ls", "sessions").split()) == ["0102", "03"]
    assert said(redis_cluster.url, "ls", "sessions", "--prefix", "01") == "0102\n"
    limited = state(redis_cluster.url, "ls", "sessions", "--limit", "1")
    assert (len(limited.stdout.split()), limited.stderr) == (1, "there are more than 1: --limit\n")
    assert said(redis_cluster.url, "ls", "names") == '"über\\n"\n'
    assert said(redis_cluster.url, "ls", "pairs") == '["10.0.0.1", 5000]\n'
    assert "7\n" in said(redis_cluster.url, "get", "pairs", '["10.0.0.1", 5000]')
    assert '{"$map": [[1, {"$hex": "00"}]]}' in said(redis_cluster.url, "get", "names", '"über\\n"')
    entry = said(redis_cluster.url, "get", "sessions", "03")
    assert re.search(r'user = +"bob\\u001b\[31m"$', entry, re.MULTILINE)
    assert re.search(r"expires +never$", entry, re.MULTILINE)
    told = json.loads(said(redis_cluster.url, "get", "sessions", "0102", "--json"))
    assert told["value"] == {"user": "alice", "hits": 3}
    assert 0 < told["ttl_s"] <= 1000
    counts = json.loads(said(redis_cluster.url, "stats", "--json"))
    assert counts["store"]["state"] == "up"
    assert {name: one["entries"] for name, one in counts["tables"].items()} == {"names": 1, "pairs": 1, "sessions": 2}
    assert counts["tables"]["sessions"]["expiring"] == 1
    assert re.search(r"^  sessions +2 ", said(redis_cluster.url, "stats", "sessions"), re.MULTILINE)


async def test_entries_are_changed_only_from_the_version_that_was_read(
    redis_server: Callable[..., RedisServer],
) -> None:
    url = redis_server().url
    await filled(url)

    def read() -> dict[str, Any]:
        return dict(json.loads(said(url, "get", "sessions", "0102", "--json")))

    first = read()
    alice = '{"user": "alice", "hits": 4}'
    said(url, "put", "sessions", "0102", alice, "--version", str(first["version"]))
    second = read()
    assert second["value"] == {"user": "alice", "hits": 4}
    assert second["version"] != first["version"]
    assert 0 < second["ttl_s"] <= first["ttl_s"], "it expires when it was to"
    for words in (("put", "sessions", "0102", alice), ("del", "sessions", "0102")):
        late = state(url, *words, "--version", str(first["version"]))
        assert (late.returncode, late.stdout) == (2, "")
        expected = f"version {second['version']} stands there, not {first['version']}; nothing was changed"
        assert late.stderr == f"somebody was faster: {expected}\n"
    assert read()["version"] == second["version"]
    said(url, "del", "sessions", "0102")
    for words in (("get", "sessions", "0102"), ("del", "sessions", "0102")):
        gone = state(url, *words)
        assert (gone.returncode, gone.stdout) == (1, "")
        assert gone.stderr == "table 'sessions' has no '0102'\n"
    said(url, "put", "sessions", "04", '{"user": "carol", "hits": 0}', "--version", "0", "--ttl", "60")
    assert 0 < json.loads(said(url, "get", "sessions", "04", "--json"))["ttl_s"] <= 60


async def test_a_change_between_reading_and_writing_is_never_lost(redis_server: Callable[..., RedisServer]) -> None:
    url = redis_server().url
    await filled(url)
    async with Shelf(url) as shelf:
        plain, handle = await shelf.plain("sessions")
        stored = await shelf.entry(handle, b"\xc4\1\3")
        assert stored is not None
        async with opened(url) as tables:
            [sessions] = tables
            await sessions.put(b"\3", Session("another's"))
        for payload in (plain.pack('{"user": "mine", "hits": 0}'), None):
            with pytest.raises(
                StateError, match=r"^somebody was faster: version \d+ stands there, not \d+; nothing was"
            ):
                await change(shelf, handle, b"\xc4\1\3", stored, None, payload, 0)
    assert "another's" in said(url, "get", "sessions", "03")


[GRANTED] = [command for command in commands("docs/guide/operating.md") if "acl setuser looker" in command]
LOOK = shlex.split(GRANTED)[1:]


@pytest.mark.parametrize("kind", ["server", "cluster"])
async def test_who_may_only_read_looks_and_changes_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        url, servers = cluster.url, cluster.nodes
    else:
        servers = [request.getfixturevalue("redis_server")()]
        url = servers[0].url
    await filled(url)
    for server in servers:
        server.ask(*LOOK)
    try:
        url = url.replace("//", "//looker:secret@")
        assert "sessions" in said(url, "ls")
        assert sorted(said(url, "ls", "sessions").split()) == ["0102", "03"]
        assert "alice" in said(url, "get", "sessions", "0102")
        assert json.loads(said(url, "stats", "--json"))["tables"]["sessions"]["entries"] == 2
        assert said(url, "quarantine", "sessions") == f"{NOTHING}\n"
        for words in (("del", "sessions", "03"), ("put", "sessions", "03", '{"user": "eve", "hits": 0}')):
            done = state(url, *words)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
            assert re.search(r"no permissions? to|NOPERM", done.stderr)
            assert "secret" not in done.stderr
        assert "bob" in said(url, "get", "sessions", "03")
    finally:
        for server in servers:
            server.ask("acl", "deluser", "looker")


async def test_who_may_not_even_look_is_told_what_is_missing(redis_cluster: RedisCluster) -> None:
    for node in redis_cluster.nodes:
        node.ask(*LOOK[:-1])
    try:
        done = state(redis_cluster.url.replace("//", "//looker:secret@"), "ls")
        assert (done.returncode, done.stdout) == (2, "")
        assert "cluster|slots" in done.stderr
    finally:
        for node in redis_cluster.nodes:
            node.ask("acl", "deluser", "looker")


async def test_what_is_no_entry_is_listed_and_removed(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server()
    await filled(server.url)
    with server.client() as client:
        [name] = [name for name in client.scan_iter(b"{vnf:sessions:*") if name.endswith(b"\xc4\1\3")]
        client.set(name, b"of somebody else")
    problem = "what stands under this key is no entry of a table"
    assert said(server.url, "quarantine", "sessions") == f"03: {problem}\n"
    assert problem in said(server.url, "get", "sessions", "03")
    assert json.loads(said(server.url, "get", "sessions", "03", "--json"))["unreadable"] == problem
    assert json.loads(said(server.url, "stats", "--json"))["tables"]["sessions"]["unreadable"] == 1
    assert sorted(said(server.url, "ls", "sessions").split()) == ["0102", "03"]
    said(server.url, "put", "sessions", "03", '{"user": "bob", "hits": 1}')
    assert said(server.url, "quarantine", "sessions") == f"{NOTHING}\n"
    with server.client() as client:
        client.set(name, b"of somebody else")
        said(server.url, "del", "sessions", "03")
        assert client.exists(name) == 0


async def test_a_table_that_cannot_be_as_it_is_described_is_refused(redis_server: Callable[..., RedisServer]) -> None:
    async with Shelf(redis_server().url) as shelf:
        for name, partitions in (("t", 0), ("t", -1), ("t", 2**63), ("{t}", 64), ("", 64)):
            with pytest.raises(StateError, match="is described as none can be"):
                shelf.opened(name, Description(partitions, False, "str", "int", {1: []}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_a_command_whose_store_does_not_answer(
    number: signal.Signals, process: Callable[..., Process]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_S)
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        child = process([sys.executable, "-m", "libvnf", "state", "ls", "--store", url], cwd=ROOT)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1), "it asks"
            child.send_signal(number)
            assert child.wait() == 130
    assert child.output == ""


async def test_a_vnf_reads_what_was_put_by_hand(redis_server: Callable[..., RedisServer]) -> None:
    url = redis_server().url
    await filled(url)
    long = "d" * 500_000  # more than fits into a word of a command line
    said(url, "put", "sessions", "05", "-", typed=json.dumps({"user": long, "hits": 9}))
    async with opened(url) as tables:
        [sessions] = tables
        assert await sessions.get(b"\5") == Session(long, 9)


async def test_what_cannot_be_read_is_listed_shown_in_hex_and_can_be_removed(
    redis_server: Callable[..., RedisServer],
) -> None:
    url = redis_server().url
    await filled(url)
    damage(url, b"alice", b"\xc1\xc1\xc1\xc1\xc1")
    [line] = said(url, "quarantine", "sessions").splitlines()
    assert line.startswith("0102: ")
    assert "bytes that are no Session" in line
    assert "\xc1" not in line
    assert "c1c1c1c1c1" in said(url, "get", "sessions", "0102")
    told = json.loads(said(url, "get", "sessions", "0102", "--json"))
    assert "c1c1c1c1c1" in told["hex"]
    assert "value" not in told
    assert json.loads(said(url, "stats", "--json"))["tables"]["sessions"]["unreadable"] == 1
    said(url, "del", "sessions", "0102")
    assert said(url, "quarantine", "sessions") == f"{NOTHING}\n"
    # A key that is none of the table's: an int where bytes are expected.
    said(url, "put", "sessions", "07", '{"user": "eve", "hits": 0}', "--packed")
    assert said(url, "quarantine", "sessions").startswith("--packed 07: its key: ")
    assert "--packed 07" in said(url, "ls", "sessions").splitlines()
    said(url, "del", "sessions", "07", "--packed")
    assert said(url, "quarantine", "sessions") == f"{NOTHING}\n"


def damage(url: str, old: bytes, new: bytes) -> None:
    """Entries that have ``old`` in them have ``new`` there."""
    with redis.Redis.from_url(url, protocol=2) as client:
        changed = 0
        for name in client.scan_iter():
            if client.type(name) == b"string" and old in (data := client.get(name) or b""):
                client.set(name, data.replace(old, new), keepttl=True)
                changed += 1
            elif client.type(name) == b"hash":
                for field, data in client.hgetall(name).items():
                    if old in data:
                        client.hset(name, field, data.replace(old, new))
                        changed += 1
    assert changed


async def test_a_damaged_catalogue_is_told_and_the_other_tables_are_shown(
    redis_server: Callable[..., RedisServer],
) -> None:
    url = redis_server().url
    await filled(url)
    damage(url, b"Session", b"\xff\x1b[31m\xff\xff")
    shown = said(url, "ls")
    assert "\x1b" not in shown
    assert re.search(r"^  sessions .*unreadable: ", shown, re.MULTILINE)
    assert "pairs" in shown
    done = state(url, "get", "sessions", "03")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert CATALOGUE in done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("get", "session", "01"), "no table 'session' in redis://"),
        (("get", "sessions", "xyz"), "key 'xyz' of table 'sessions': expected hexadecimal digits"),
        (("put", "sessions", "01", '{"user": "a"}'), "table 'sessions': without hits: expected all fields"),
        (("put", "pairs", '["a", 1]', '"x"'), "table 'pairs': str, expected int"),
        (("get", "sessions", "00" * 5000, "--packed"), "--packed: 5000 bytes, expected 1…1024"),
        (("get", "t" * 5000, "a"), "at most 1024"),
        (("del", "sessions", "zz", "--packed"), "--packed: 'zz' is not hexadecimal"),
        (("ls", "--store", "memory://"), "memory://: is within one process, and nobody else can look into it"),
        (("ls", "--store", "redis+embedded:///no/where"), "there is no such directory"),
        (("ls", "--store", "redis://127.0.0.1:1"), "redis://127.0.0.1:1"),
        (("ls", "--store", ""), "which store? --store URL, or VNF_STORE in the environment"),
    ],
)
async def test_a_mistake_is_one_line_and_exit_code_2(
    words: tuple[str, ...], problem: str, redis_server: Callable[..., RedisServer]
) -> None:
    url = redis_server().url
    await filled(url)
    done = state(url, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


async def test_an_embedded_store_is_looked_into_after_its_vnf_has_gone(tmp_path: Path) -> None:
    url = f"redis+embedded://{tmp_path}/store"
    await filled(url)
    assert "0102" in said(url, "ls", "sessions").split()
