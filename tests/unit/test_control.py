"""The control socket: who finds it, who may ask, and what a client cannot do to a VNF."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from libvnf import control
from libvnf.config import control_directories
from libvnf.control import (
    ANSWER_BYTES,
    CLIENTS,
    QUESTION_BYTES,
    Answer,
    Control,
    NoAnswer,
    Peer,
    Refused,
    answering,
    find,
)
from libvnf.errors import VNFError

LOG = logging.getLogger("vnf.b")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VNF_CONTROL", str(tmp_path / "control"))
    return tmp_path / "control"


class Ticks:
    """A stream that gives items when told to."""

    def __init__(self) -> None:
        self.started, self.ended = asyncio.Event(), asyncio.Event()
        self.closed = 0

    def start(self, item: Callable[[Answer], None], end: Callable[[Answer], None]) -> None:
        self.item, self.end = item, end
        self.started.set()

    def close(self) -> None:
        self.closed += 1
        self.ended.set()


def refuse(asked: Mapping[str, Any]) -> Answer:
    raise VNFError("not that")


async def opened(**more: control.Question) -> Control:
    questions: dict[str, control.Question] = {"echo": lambda asked: dict(asked), "no": refuse, **more}
    made = Control("b", questions, LOG)
    await made.open()
    return made


def path_of(directory: Path) -> Path:
    return directory / f"b.{os.getpid()}.sock"


async def told(reader: asyncio.StreamReader) -> Any:
    return json.loads(await reader.readline())


# --- places -----------------------------------------------------------------------------------------------------------


def test_root_uses_run_and_others_their_runtime_directory() -> None:
    assert control_directories(0, {"XDG_RUNTIME_DIR": "/elsewhere", "TMPDIR": "/t"}) == ["/run/vnf", "/t/vnf-0"]
    assert control_directories(7, {"XDG_RUNTIME_DIR": "/r", "TMPDIR": "/t"}) == ["/r/vnf", "/t/vnf-7"]
    assert control_directories(7, {"TMPDIR": "/t"}) == ["/run/user/7/vnf", "/t/vnf-7"]
    assert control_directories(7, {"VNF_CONTROL": "/c"}) == ["/c"]


def opened_and_closed(meanwhile: Callable[[], None] = lambda: None) -> None:
    async def main() -> None:
        made = await opened()
        meanwhile()
        made.close()
        made.close()

    asyncio.run(main())


def test_socket_and_directory_are_private_and_the_socket_goes(directory: Path) -> None:
    def look() -> None:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert path_of(directory).stat().st_mode & 0o777 == 0o600

    opened_and_closed(look)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_directory_that_others_could_change_is_not_used(
    directory: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "a file":
        directory.write_text("")
    elif kind == "a link":
        (directory.parent / "real").mkdir(mode=0o700)
        directory.symlink_to(directory.parent / "real")
    else:
        directory.mkdir()
        directory.chmod(0o777)
    opened_and_closed()
    [warning] = caplog.messages
    assert warning.startswith("vnf ports and vnf trace will not find this VNF: no control socket: ")


@pytest.mark.needs("root")
def test_a_directory_of_somebody_else_is_not_used(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)
    opened_and_closed()
    assert "is not a directory that this user alone can write to" in caplog.text


def test_a_path_too_long_for_a_socket_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VNF_CONTROL", str(tmp_path / ("x" * 100)))
    opened_and_closed()
    assert len(caplog.messages) == 1


def test_a_file_that_is_not_ours_any_more_stays(directory: Path) -> None:
    def replace() -> None:
        path_of(directory).unlink()
        path_of(directory).write_text("another's")

    opened_and_closed(replace)
    assert path_of(directory).read_text() == "another's"


def test_files_of_the_dead_are_removed_and_those_of_the_living_found(directory: Path) -> None:
    def look() -> None:
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            ended.wait()
        foreign = {f"c.{os.getppid()}.sock", "memif.sock", "no.number.sock"}
        for name in (f"a.{ended.pid}.sock", *foreign):
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(directory / name))
        [found] = find()
        assert (found.name, found.pid, str(found)) == ("b", os.getpid(), f"b (pid {os.getpid()})")
        assert [find(word) for word in ("b", str(os.getpid()), "x")] == [[found], [found], []]
        assert {path.name for path in directory.iterdir()} == {path_of(directory).name, *foreign}

    opened_and_closed(look)


def test_the_file_of_a_process_that_had_our_pid_is_replaced(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path_of(directory)))

    def look() -> None:
        assert len(find()) == 1

    opened_and_closed(look)


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_one_asks_again_and_again(directory: Path) -> None:
    made = await opened()
    reader, writer = await asyncio.open_unix_connection(path_of(directory))
    for number in range(3):
        writer.write(json.dumps({"ask": "echo", "number": number}).encode() + b"\n")
        assert await told(reader) == {"answer": {"ask": "echo", "number": number}}
    writer.write(b'{"ask": "no"}\n')
    assert await told(reader) == {"refused": "not that"}
    writer.write(b'{"ask": "stop"}\n')
    assert await told(reader) == {"refused": "expected one of echo, no"}
    made.close()
    assert await reader.read() == b""
    writer.close()


async def test_a_peer_tells_refusals_and_silence_apart(directory: Path) -> None:
    made = await opened()
    [peer] = await asyncio.to_thread(find)
    assert await asyncio.to_thread(peer.ask, "echo", 5, word="x") == {"ask": "echo", "word": "x"}
    with pytest.raises(Refused, match=r"^b \(pid \d+\): not that$"):
        await asyncio.to_thread(peer.ask, "no")
    with pytest.raises(NoAnswer, match=r"does not answer within 0\.01 s: a handler holds its loop, or it is stopped$"):
        peer.ask("echo", 0.01)  # on the loop's own thread: it cannot
    made.close()
    with pytest.raises(NoAnswer, match="does not answer: "):
        peer.ask("echo")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"ports\n",
        b"[]\n",
        b"{}\n",
        b"null\n",
        b'{"ask": []}\n',
        b"\xff\n",
        b"[" * 4000 + b"\n",
        b'{"ask": {}}\n',
    ],
)
async def test_what_is_no_question_is_refused_and_ends_it(directory: Path, line: bytes) -> None:
    made = await opened()
    reader, writer = await asyncio.open_unix_connection(path_of(directory))
    writer.write(line)
    assert await told(reader) == {"refused": 'expected a line of JSON such as {"ask": "ports"}'}
    assert await reader.read() == b""
    assert made.clients == set()
    writer.close()
    made.close()


@pytest.mark.parametrize("line", [b"x" * (QUESTION_BYTES + 1), b'{"ask": "echo"}\n{"ask": "echo"}\n'])
async def test_more_than_one_short_question_is_refused(directory: Path, line: bytes) -> None:
    made = await opened()
    reader, writer = await asyncio.open_unix_connection(path_of(directory))
    writer.write(line)
    assert "one question at a time" in (await told(reader))["refused"]
    assert await reader.read() == b""
    writer.close()
    made.close()


async def test_so_many_may_ask_at_a_time(directory: Path) -> None:
    made = await opened()
    first = [await asyncio.open_unix_connection(path_of(directory)) for _ in range(CLIENTS)]
    for reader, writer in first:
        writer.write(b'{"ask": "echo"}\n')
        assert "answer" in await told(reader)
    reader, writer = await asyncio.open_unix_connection(path_of(directory))
    assert await told(reader) == {"refused": f"{CLIENTS} others ask already"}
    for _, one in [*first, (reader, writer)]:
        one.close()
    made.close()


async def test_another_user_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_uid", lambda transport: os.geteuid() + 1)
    made = await opened()
    reader, writer = await asyncio.open_unix_connection(path_of(directory))
    assert await told(reader) == {"refused": "another user's"}
    assert await reader.read() == b""
    writer.close()
    made.close()


async def test_the_kernel_says_who_connects(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = control.peer_uid
    monkeypatch.setattr(control, "peer_uid", lambda transport: seen.append(real(transport)) or seen[-1])
    made = await opened()
    reader, writer = await asyncio.open_unix_connection(path_of(directory))
    writer.write(b'{"ask": "echo"}\n')
    assert "answer" in await told(reader)
    assert seen == [os.geteuid()]
    writer.close()
    made.close()


async def test_who_asks_nothing_is_sent_away(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SILENCE_S", 0.01)
    made = await opened()
    reader, writer = await asyncio.open_unix_connection(path_of(directory))
    assert await reader.read() == b""
    assert made.clients == set()
    writer.close()
    made.close()


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_a_stream_gives_items_and_then_its_answer(directory: Path) -> None:
    ticks = Ticks()
    made = await opened(ticks=lambda asked: ticks)
    [peer] = await asyncio.to_thread(find)
    heard = asyncio.create_task(asyncio.to_thread(lambda: list(peer.listen("ticks"))))
    await ticks.started.wait()
    for number in range(3):
        ticks.item({"number": number})
    ticks.end({"count": 3})
    assert await heard == [{"number": 0}, {"number": 1}, {"number": 2}, {"count": 3}]
    assert ticks.closed == 1
    made.close()


async def test_a_stream_is_closed_when_its_client_goes(directory: Path) -> None:
    ticks = Ticks()
    made = await opened(ticks=lambda asked: ticks)
    reader, writer = await asyncio.open_unix_connection(path_of(directory))
    writer.write(b'{"ask": "ticks"}\n')
    await ticks.started.wait()
    writer.close()
    await ticks.ended.wait()
    assert (ticks.closed, made.clients) == (1, set())
    assert await reader.read() == b""
    made.close()


async def test_who_does_not_read_is_dropped(directory: Path) -> None:
    ticks = Ticks()
    made = await opened(ticks=lambda asked: ticks)
    _, writer = await asyncio.open_unix_connection(path_of(directory), limit=1)
    writer.write(b'{"ask": "ticks"}\n')
    await ticks.started.wait()
    given = 0
    while not ticks.ended.is_set():
        ticks.item({"text": "x" * 65536})
        given += 65536
        assert given < 4 * ANSWER_BYTES
        await asyncio.sleep(0)
    assert ticks.closed == 1
    writer.close()
    made.close()


@contextmanager
def saying(path: Path, say: Callable[[socket.socket], None]) -> Iterator[Peer]:
    """A peer that ``say`` speaks for, once, until it is not heard any more."""

    def serve() -> None:
        with listener.accept()[0] as one, suppress(BrokenPipeError, ConnectionResetError):
            one.recv(QUESTION_BYTES)
            say(one)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield Peer("b", 1, path)
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        *(b"nonsense\n", b"[]\n", b"5\n", b"null\n", b"{}\n", b'{"answer": 1}\n', b'{"answer": {}', b""),
        *(b"[" * 100_000 + b"\n", b"1" * 10_000 + b"\n", b" " * 2 * ANSWER_BYTES),
    ],
    ids=lambda answer: answer[:9].decode(),
)
def test_a_peer_that_answers_nonsense_does_not_answer(tmp_path: Path, answer: bytes) -> None:
    with saying(tmp_path / "s", lambda one: one.sendall(answer)) as peer, pytest.raises(NoAnswer):
        peer.ask("ports")


def test_the_whole_of_an_answer_has_its_time_however_slowly_it_comes(tmp_path: Path) -> None:
    never = threading.Event()

    def drip(one: socket.socket) -> None:
        while not never.wait(0.01):
            one.sendall(b" ")

    with saying(tmp_path / "s", drip) as peer, pytest.raises(NoAnswer, match=r"within 0\.1 s"):
        peer.ask("ports", timeout_s=0.1)


def test_a_refusal_steers_no_terminal(tmp_path: Path) -> None:
    words = json.dumps({"refused": "\x1b[2J\nno"}).encode() + b"\n"
    with saying(tmp_path / "s", lambda one: one.sendall(words)) as peer, pytest.raises(Refused) as refusal:
        peer.ask("ports")
    assert str(refusal.value) == "b (pid 1): ?[2J?no"


def test_a_socket_whose_name_would_steer_a_terminal_is_not_found(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / f"\x1b[2J.{os.getpid()}.sock"))
        listener.listen()
        assert find() == []


def test_who_answers_one_question_without_end_is_not_listened_to(tmp_path: Path) -> None:
    """Root asks programs of others too, and those may say what they like."""

    def chatter(one: socket.socket) -> None:
        while True:
            one.sendall(b'{"item": {}}\n' * 1000)

    with saying(tmp_path / "s", chatter) as peer:
        assert peer.ask("ports") == {}


def test_a_program_without_a_loop_answers_from_a_thread(directory: Path) -> None:
    with answering("b", {"echo": lambda asked: dict(asked)}, LOG):
        [peer] = find()
        assert peer.ask("echo", word="x") == {"ask": "echo", "word": "x"}
    assert list(directory.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "control"]
