"""A running VNF answers questions on a Unix socket: what ``vnf ports`` and ``vnf trace`` ask.

One line of JSON asks, ``{"ask": "ports"}``; one line answers, ``{"answer": …}`` or ``{"refused": "why"}``. A stream is
an answer of many lines, ``{"item": …}``, until ``{"answer": …}``. Nothing that is asked changes what a VNF does.

Who may ask: the VNF's own user, and root. The socket has mode 0600, stands in a directory that nobody else can write
to, and the kernel says who connects (SO_PEERCRED, unix(7)). Whoever asks is bounded all the same: so many at a time,
one short question at a time, answers that are read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from .config import control_directories
from .errors import VNFError

__all__ = ["Answer", "Control", "NoAnswer", "Peer", "Question", "Refused", "Stream", "answering", "find", "printable"]

Answer = dict[str, Any]

CLIENTS = 8
"""At a time."""
QUESTION_BYTES = 4096
ANSWER_BYTES = 1 << 20
"""What is written and not read of one client's answers; the longest line that a client takes."""
SILENCE_S = 60.0
"""A client that asks nothing is sent away."""
BACKLOG = 16


class Refused(VNFError):
    """The VNF will not answer that; the message says why."""


class NoAnswer(VNFError):
    """The VNF does not answer: it has gone, or something holds its loop."""


class Stream(Protocol):
    """An answer of many items, made when asked and closed once: at its end, or when nobody listens any more."""

    def start(self, item: Callable[[Answer], None], end: Callable[[Answer], None]) -> None:
        """Gives items as they come, then the answer at the end. Neither is called from within ``start``."""

    def close(self) -> None:
        """Nobody listens any more."""


Question = Callable[[Mapping[str, Any]], "Answer | Stream"]


# --- where sockets are --------------------------------------------------------------------------------------------


def own_directory() -> Path:
    """The first directory that is, or can be made, ours alone; ``OSError`` says why there is none."""
    problem: OSError | None = None
    for path in map(Path, control_directories(os.geteuid())):
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            if not is_mine(path):
                raise PermissionError(f"{path} is not a directory that this user alone can write to")
            return path
        except OSError as error:
            problem = problem or error
    raise problem or FileNotFoundError("no directory for it")


def is_mine(path: Path) -> bool:
    """A directory, no link to one, where nobody but this user can put something."""
    status = os.lstat(path)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def directories() -> Iterator[Path]:
    """Where VNFs that this user may ask can be; root may ask everybody's."""
    for text in control_directories(os.geteuid()):
        yield Path(text)
    if os.geteuid() == 0:
        yield from Path("/run/user").glob("*/vnf")


@dataclass(frozen=True, slots=True)
class Peer:
    """A VNF that runs, as its socket's name says."""

    name: str
    pid: int
    path: Path

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    def ask(self, question: str, timeout_s: float = 5.0, **fields: Any) -> Answer:
        """The answer to one question. ``Refused`` or ``NoAnswer``."""
        # Its first line: whoever sends more is another user's program, which root asks as well.
        return next(self.listen(question, timeout_s, **fields))

    def listen(self, question: str, timeout_s: float | None = 5.0, **fields: Any) -> Iterator[Answer]:
        """The items of a stream, then its answer. ``timeout_s`` is how long to wait for each line, whole."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(timeout_s)
                sock.connect(str(self.path))
                sock.sendall(json.dumps({"ask": question, **fields}).encode() + b"\n")
                for line in lines(sock, timeout_s):
                    told = json.loads(line)
                    if "refused" in told:
                        raise Refused(f"{self}: {printable(told['refused'])}")
                    found = told.get("item", told.get("answer"))
                    if not isinstance(found, dict):
                        raise ValueError(f"{line[:80]!r} is no answer")
                    yield found
                    if "answer" in told:
                        return
        except TimeoutError:
            held = "a handler holds its loop, or it is stopped"
            raise NoAnswer(f"{self} does not answer within {timeout_s:g} s: {held}") from None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise NoAnswer(f"{self} does not answer: {why}") from None
        raise NoAnswer(f"{self} has gone")


def lines(sock: socket.socket, timeout_s: float | None) -> Iterator[bytes]:
    """What comes, line by line. However slowly its bytes come, ``timeout_s`` is for the whole of one."""
    came = b""
    while True:
        until_s = time.monotonic() + (timeout_s or 0)
        while b"\n" not in came:
            if len(came) > ANSWER_BYTES:
                raise ValueError(f"a line of more than {ANSWER_BYTES} bytes")
            if timeout_s is not None:
                sock.settimeout(max(until_s - time.monotonic(), 1e-6))
            piece = sock.recv(1 << 16)
            if not piece:
                return
            came += piece
        line, _, came = came.partition(b"\n")
        yield line


def printable(text: object) -> str:
    """What others say, fit for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def find(wanted: str = "") -> list[Peer]:
    """VNFs that run, by name and pid: all of this user's, or those whose name or pid is ``wanted``.

    Files that dead processes have left are removed on the way.
    """
    found = []
    for directory in directories():
        try:
            mine = is_mine(directory)
            paths = sorted(directory.glob("*.sock")) if mine or os.geteuid() == 0 else []
        except OSError:
            continue
        for path in paths:
            name, _, pid = path.name.removesuffix(".sock").rpartition(".")
            if not name or not name.isprintable() or not (pid.isascii() and pid.isdecimal()):
                continue
            if wanted not in ("", name, pid):
                continue
            if answers(path):
                found.append(Peer(name, int(pid), path))
            elif mine and not os.path.exists(f"/proc/{pid}"):
                # With its process gone it is not one that is about to listen.
                path.unlink(missing_ok=True)
    return sorted(set(found), key=lambda peer: (peer.name, peer.pid))


def answers(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # its backlog is full
        except OSError:
            return False
    return True


# --- the VNF's side -----------------------------------------------------------------------------------------------


class Control:
    """Answers for one VNF from its event loop. ``questions``: by the word that asks."""

    def __init__(self, name: str, questions: Mapping[str, Question], log: logging.Logger) -> None:
        self.questions, self._log = questions, log
        self._name = name
        self._path: Path | None = None
        self._identity = (0, 0)
        self._server: asyncio.Server | None = None
        self.clients: set[Client] = set()

    async def open(self) -> None:
        """Listens. A VNF that cannot be asked serves all the same: that is a warning."""
        try:
            sock, self._path = self._listening()
            status = os.lstat(self._path)
            self._identity = (status.st_dev, status.st_ino)
            self._server = await asyncio.get_running_loop().create_unix_server(lambda: Client(self), sock=sock)
        except OSError as error:
            reason = error.strerror or error
            self._log.warning("vnf ports and vnf trace will not find this VNF: no control socket: %s", reason)

    def _listening(self) -> tuple[socket.socket, Path]:
        path = own_directory() / f"{self._name}.{os.getpid()}.sock"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # A file with our pid is of a process that was before us, or lives in another pid namespace.
            if not answers(path):
                path.unlink(missing_ok=True)
            # The file gets the mode of the socket: it never has another one.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(str(path))
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock, path

    def close(self) -> None:
        """Sends everybody away and removes the file. Closing twice does nothing."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self.clients):
            client.leave()
        if self._path is not None:
            try:
                status = os.lstat(self._path)
                if (status.st_dev, status.st_ino) == self._identity:
                    os.unlink(self._path)
            except OSError:
                pass  # somebody has removed it
            self._path = None


@contextmanager
def answering(name: str, questions: Mapping[str, Question], log: logging.Logger) -> Iterator[None]:
    """Answers inside the block from a thread of its own, for a program without an event loop."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        control = Control(name, questions, log)
        try:
            await control.open()
        finally:
            ready.set()
        await over.wait()
        control.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="control", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


class Client(asyncio.Protocol):
    """One that asks."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._line = b""
        self._stream: Stream | None = None
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        transport.set_write_buffer_limits(high=ANSWER_BYTES)
        if len(self._control.clients) >= CLIENTS:
            self._refuse(f"{CLIENTS} others ask already")
        elif peer_uid(transport) not in (0, os.geteuid()):
            self._refuse("another user's")
        else:
            self._control.clients.add(self)
            self._await_question()

    def _await_question(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = asyncio.get_running_loop().call_later(SILENCE_S, self.leave)

    def data_received(self, data: bytes) -> None:
        if self not in self._control.clients:
            return
        self._line += data
        line, newline, more = self._line.partition(b"\n")
        if more or len(line) > QUESTION_BYTES or self._stream is not None:
            self._refuse(f"one question at a time, of at most {QUESTION_BYTES} bytes")
        elif newline:
            self._line = b""
            self._await_question()
            self._asked(line)

    def _asked(self, line: bytes) -> None:
        try:
            asked = json.loads(line)
            question = self._control.questions.get(asked["ask"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return self._refuse('expected a line of JSON such as {"ask": "ports"}')
        if question is None:
            return self._write({"refused": f"expected one of {', '.join(self._control.questions)}"})
        try:
            answer = question(asked)
        except (VNFError, RuntimeError) as error:  # RuntimeError: the VNF is closed just now
            return self._write({"refused": str(error)})
        if isinstance(answer, dict):
            return self._write({"answer": answer})
        self._stream = answer
        if self._silence is not None:
            self._silence.cancel()
        answer.start(lambda item: self._write({"item": item}), self._ended)

    def _ended(self, answer: Answer) -> None:
        self._close_stream()
        self._write({"answer": answer})
        self._await_question()

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _write(self, told: Answer) -> None:
        self._transport.write(json.dumps(told).encode() + b"\n")

    def _refuse(self, why: str) -> None:
        self._write({"refused": why})
        self.leave()

    def pause_writing(self) -> None:
        """It does not read its answers."""
        self._transport.abort()

    def leave(self) -> None:
        """What is written still goes out."""
        self._transport.close()
        self._gone()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()

    def _gone(self) -> None:
        self._control.clients.discard(self)
        if self._silence is not None:
            self._silence.cancel()
        self._close_stream()


def peer_uid(transport: asyncio.Transport) -> int:
    """Who connected, as the kernel knows it: struct ucred, pid, uid, gid."""
    duplicate = os.dup(transport.get_extra_info("socket").fileno())
    with socket.socket(fileno=duplicate) as sock:
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
