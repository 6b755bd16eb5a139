"""Programs that the integration tests talk to: started, watched and ended here, never by name and never by waiting a
while. A wait is always for something (a line, an exit, a counter), with a deadline that only a defect reaches. Waiting
blocks: a test whose own event loop must turn meanwhile says ``await asyncio.to_thread(child.wait_for, …)``.
"""

import contextlib
import ctypes
import itertools
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

DEADLINE_S = 30.0


class Process:
    """A child in a process group of its own. Its standard output and error are collected together."""

    def __init__(
        self,
        args: Sequence[str | Path],
        *,
        netns: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        prefix = ["ip", "netns", "exec", netns] if netns else []
        self.args = [*prefix, *map(str, args)]
        self._text = ""
        self._seen = 0  # where the next wait_for begins to look
        self._ended = False  # nothing more will be read
        self._news = threading.Condition()
        self._child = subprocess.Popen(
            self.args,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
        self._pidfd = os.pidfd_open(self._child.pid)
        self._reader = threading.Thread(target=self._read, name=f"output of {self.args[0]}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def output(self) -> str:
        with self._news:
            return self._text

    @property
    def returncode(self) -> int | None:
        """None while it runs. A negative number is the signal that ended it."""
        return self._child.returncode

    def _read(self) -> None:
        assert self._child.stdout is not None
        while data := os.read(self._child.stdout.fileno(), 65536):
            with self._news:
                self._text += data.decode(errors="replace")
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str, *, deadline_s: float = DEADLINE_S) -> re.Match[str]:
        """The next place of the output that ``pattern`` (a multi-line regular expression) matches."""
        wanted = re.compile(pattern, re.MULTILINE)
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal found
            found = wanted.search(self._text, self._seen)
            return found is not None or self._ended

        with self._news:
            self._news.wait_for(look, deadline_s)
            if found is None:
                why = "it ended" if self._ended else f"{deadline_s} s passed"
                raise AssertionError(f"{self.args}: {why} without printing {pattern!r}; it printed:\n{self._text}")
            self._seen = found.end()
            return found

    def write(self, text: str) -> None:
        """To its standard input, which stays open until ``stop``."""
        assert self._child.stdin is not None
        self._child.stdin.write(text.encode())
        self._child.stdin.flush()

    def send_signal(self, number: signal.Signals) -> None:
        """To the process alone, not its group; nothing when it has ended."""
        self._child.send_signal(number)

    def wait(self, *, deadline_s: float = DEADLINE_S) -> int:
        """Its exit status. What it left behind in its process group is killed."""
        if self._child.returncode is None:
            if not select.select([self._pidfd], [], [], deadline_s)[0]:
                raise AssertionError(f"{self.args}: still running after {deadline_s} s; it printed:\n{self.output}")
            # Not reaped yet, so the group's number is still its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._child.wait()
            self._reader.join(DEADLINE_S)
        return self._child.returncode

    def stop(self, *, grace_s: float = 10.0) -> int:
        """SIGTERM, then SIGKILL to the whole group; returns the exit status. Stopping twice does nothing."""
        if self._pidfd < 0:
            return self._child.returncode
        if self._child.returncode is None:
            self._child.terminate()
            if not select.select([self._pidfd], [], [], grace_s)[0]:
                os.killpg(self.pid, signal.SIGKILL)
        status = self.wait()
        os.close(self._pidfd)
        self._pidfd = -1
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return status


class Testpmd(Process):
    """DPDK's testpmd, the memif peer that nobody here wrote. Copy mode, no huge pages."""

    __test__ = False  # its name begins like a test's
    _serial = itertools.count()

    def __init__(self, *vdevs: str, forward: str = "io", options: str = "", cpu: int = 0, netns: str | None = None):
        # Its own --file-prefix, or two of them share a runtime directory; stdbuf, or its output stays buffered; main
        # and worker on one cpu: the other one is the VNF's.
        prefix = f"vnf{os.getpid()}-{next(self._serial)}"
        eal = f"--no-huge -m 128 --no-pci --no-telemetry --file-prefix={prefix} --lcores 0@{cpu},1@{cpu}".split()
        pmd = f"-i --auto-start --forward-mode={forward} --total-num-mbufs=4096 {options}".split()
        super().__init__(
            ["stdbuf", "-oL", "dpdk-testpmd", *eal, *(f"--vdev={vdev}" for vdev in vdevs), "--", *pmd], netns=netns
        )
        self._ready()

    def _ready(self) -> None:
        try:
            self.wait_for(r"^testpmd> ")
        except AssertionError:
            self.stop(grace_s=0)
            raise

    @staticmethod
    def memif(
        socket: Path,
        *,
        role: str,
        id: int = 0,
        secret: str | None = None,
        ring_log2: int = 10,
        buffer_bytes: int = 2048,
    ) -> str:
        """The virtual device of one memif interface. ``role``: ``server`` listens, ``client`` connects, once."""
        device = f"net_memif{id},role={role},id={id},socket={socket},socket-abstract=no"
        device += f",rsize={ring_log2},bsize={buffer_bytes}"
        return device + (f",secret={secret}" if secret else "")

    def command(self, line: str) -> str:
        """What it answers to one line."""
        start = self._seen
        self.write(line + "\n")
        answer = self.wait_for(r"^testpmd> ")
        return self.output[start : answer.start()]

    def counters(self, port: int = 0) -> dict[str, int]:
        """``RX-packets``, ``TX-packets``, ``RX-missed``, ``TX-errors`` … of a port, since it started."""
        answer = self.command(f"show port stats {port}")
        return {name: int(value) for name, value in re.findall(r"([RT]X-[\w-]+):\s+(\d+)", answer)}

    def wait_counters(
        self, enough: Callable[[dict[str, int]], bool], port: int = 0, *, deadline_s: float = DEADLINE_S
    ) -> dict[str, int]:
        """Asks again until ``enough(counters)``."""
        until = time.monotonic() + deadline_s
        while not enough(now := self.counters(port)):
            assert time.monotonic() < until, f"testpmd's counters after {deadline_s} s: {now}"
        return now


class Namespace:
    """A network namespace with its loopback up: a host of our own on this machine."""

    _serial = itertools.count()

    def __init__(self) -> None:
        self.name = f"vnf-{os.getpid()}-{next(self._serial)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *args: str | Path, timeout_s: float = DEADLINE_S) -> str:
        """Runs a command inside; its output. A failure raises with what it printed."""
        command = ["ip", "netns", "exec", self.name, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def pings(self, address: str, *, size: int = 56, count: int = 3) -> None:
        """``count`` answers come; a machine that is busy may take its time."""
        ping = ["ping", "-c", str(count), "-i", "0.05", "-w", "20", "-s", str(size), address]
        report = self.run(*ping)
        assert f" {count} received" in report, report

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of the namespace, for this process to use."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _setns(there)
            try:
                made = socket.socket(family, kind)
            finally:
                _setns(home)
        finally:
            os.close(home)
            os.close(there)
        made.settimeout(DEADLINE_S)
        return made

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # Of the calling thread alone.
    if libc.setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def frames_without_fault(capture: Path) -> int:
    """How many frames ``capture`` has, all of which tshark reads without finding one malformed or a checksum wrong."""
    protocols = ("ip", "tcp", "udp", "icmp", "icmpv6", "sctp")
    # ICMP's are always verified; the others are a preference, off by default because of checksum offload.
    preferences = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")] + ["-osctp.checksum:TRUE"]
    bad = " || ".join(["_ws.malformed", *(f'{name}.checksum.status == "Bad"' for name in protocols)])
    # Linux writes a checksum of 0 as 0xffff, as UDP wants it, over IPv6 also into TCP's header. It sums up to the same.
    bad = f"({bad}) && !(tcp.checksum == 0xffff)"
    # What looks like RTCP in random bytes is not.
    faults = _tshark("-r", capture, *preferences, "--disable-heuristic", "rtcp_udp", "-Y", bad)
    assert not faults, f"tshark finds fault with {capture}:\n" + "\n".join(faults)
    return len(_tshark("-r", capture, "-Tfields", "-eframe.number"))


def _tshark(*args: str | Path) -> list[str]:
    done = subprocess.run(["tshark", "-n", *map(str, args)], capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert done.returncode == 0, f"tshark {args}: {done.stderr}"
    return done.stdout.splitlines()


def missing(program: str) -> str | None:
    """Why ``program`` cannot be used here, and what to do about it. ``root`` is one as well."""
    if program == "root":
        return None if os.geteuid() == 0 else "network namespaces need root: run make test as root"
    if shutil.which(program):
        return None
    return f"{program} is not installed: tools/packages test (which make test runs) installs it"
