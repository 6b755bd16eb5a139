"""A VNF under attack: an echo server on three ports. One is the attacker's; two witness that it goes on serving."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.inspection import Window, in_use
from tests.integration.memif import Client
from tests.integration.programs import QUICK, Program, running
from tests.integration.station import Station
from tests.peers import DEADLINE_S

FreePort = Callable[[], int]

ECHO = """
from libvnf import VNF
from tests.integration.inspection import open_window

vnf = VNF("b")
open_window(vnf)

@vnf.server("udp://:{port}")
def echo(conn, request, packet):
    conn.send(packet)
"""


class Replica:
    """A VNF with three ports: the one that is attacked, and two that witness that it goes on serving."""

    def __init__(self, program: Program, window: Window, attacked: Path, good: Station, port: int) -> None:
        self.program, self.window, self.attacked, self.good, self.port = program, window, attacked, good, port
        self.serial = 0

    def serves(self) -> None:
        """The second memif port and the kernel socket answer."""
        self.serial += 1
        question = b"question %d" % self.serial
        assert self.good.ask(self.port, question) == question
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE_S)
            sock.connect(("127.0.0.1", self.port))
            sock.send(question)
            assert sock.recv(2048) == question

    def counters(self) -> dict[str, int]:
        return self.window.counters("port0")

    def link(self) -> str:
        found: str = self.window.look()["transports"]["port0"]["link"]
        return found

    def station(self, client: Client) -> Station:
        return Station(client, "10.0.0.1", "10.0.0.2")


@contextmanager
def replica(tmp_path: Path, port: int, role: str = "server", extra: str = "") -> Iterator[Replica]:
    attacked, good, window = (tmp_path / name for name in ("attacked.sock", "good.sock", "window.sock"))
    options = [
        *("--transport", f"memif:{attacked},role={role},address=10.0.0.2/24,address=fd00::2/64{extra}"),
        *("--transport", f"memif:{good},role=server,address=10.0.1.2/24"),
        *("--transport", "kernel"),
        *("--set", f"window={window}", *QUICK),
    ]
    with ExitStack() as stack:
        program = stack.enter_context(running(tmp_path, ECHO.format(port=port), *options))
        look = Window(window)
        stack.callback(look.close)
        client = stack.enter_context(Client(good)).connect()
        yield Replica(program, look, attacked, Station(client, "10.0.1.1", "10.0.1.2"), port)
        program.signal(signal.SIGTERM)
        assert (program.exit(), program.errors) == (0, [])
        assert [path for path in (attacked, good, window) if path.exists()] == [attacked] * (role == "client")


@contextmanager
def attack(tmp_path: Path, free_port: FreePort) -> Iterator[Replica]:
    """A replica that serves before, and afterwards as if nothing had happened."""
    with replica(tmp_path, free_port()) as victim:
        victim.serves()
        well(victim)  # the first wake-up of a port opens a descriptor for all later ones
        before = victim.window.wait(lambda now: now["transports"]["port0"]["counters"]["disconnects"] == 1)
        yield victim
        victim.serves()
        keys = ("descriptors", "threads")
        victim.window.wait(lambda now: all(now[k] == before[k] for k in keys) and in_use(now) == in_use(before))
        well(victim)


def well(victim: Replica) -> None:
    with Client(victim.attacked).connect() as honest:
        assert victim.station(honest).ask(victim.port, b"well") == b"well"
