"""A VNF on a network interface that it shares with a kernel, at one end of a veth pair; another kernel at the other.

The far namespace is 10.0.0.1 and fd00::1 on ``far``. The VNF runs in the near one, whose kernel is 10.0.0.3 and fd00::3
on ``eth1``; by AF_XDP on ``eth1`` it is itself 10.0.0.2 and fd00::2.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.bridge import ECHO, NetNS, without_offload
from tests.integration.inspection import Window
from tests.integration.programs import QUICK, Program, inside, running

OWN = "address=10.0.0.2/24,address=fd00::2/64,gateway=10.0.0.1,gateway=fd00::1"


class Cable:
    """Two namespaces and the pair between them, of so many queues each way."""

    def __init__(self, tmp_path: Path, netns: NetNS, *, queues: int = 1, mtu: int = 1500) -> None:
        self.path, self.near, self.far = tmp_path, netns(), netns()
        self.window: Window
        count = ["numtxqueues", str(queues), "numrxqueues", str(queues)]
        self.count, self.mtu = count, mtu
        self.connect()

    def connect(self) -> None:
        """Makes the pair; again, after its end was deleted."""
        pair = ["far", "mtu", str(self.mtu), *self.count, "type", "veth"]
        pair += ["peer", "name", "eth1", "mtu", str(self.mtu), *self.count, "netns", self.near.name]
        self.far.run("ip", "link", "add", *pair)
        for namespace, device, last in ((self.far, "far", 1), (self.near, "eth1", 3)):
            # A sum that the sender leaves to the card is never made on this cable.
            without_offload(namespace, device)
            namespace.run("ip", "address", "add", f"10.0.0.{last}/24", "dev", device)
            namespace.run("ip", "address", "add", f"fd00::{last}/64", "dev", device, "nodad")
            namespace.run("ip", "link", "set", device, "up")

    @contextmanager
    def vnf(self, keys: str = "", source: str = ECHO, *options: str, own: str = OWN) -> Iterator[Program]:
        """Runs the VNF on ``eth1``; a source that opens a window has it looked through by ``self.window``."""
        window = self.path / "window.sock" if "open_window" in source else None
        transport = ",".join(filter(None, ["af_xdp:eth1", own, keys]))
        quick = [*QUICK, "--set", f"window={window}"] if window else QUICK
        with ExitStack() as stack:
            program = stack.enter_context(
                running(self.path, source, "--transport", transport, *quick, *options, command=inside(self.near))
            )
            if window:
                self.window = Window(window)
                stack.callback(self.window.close)
            yield program

    def attached(self) -> str | None:
        """How a program is attached to the interface: ``xdp`` by its driver, ``xdpgeneric`` above it."""
        found = re.search(r"\bxdp\w*\b", self.near.run("ip", "link", "show", "eth1").partition("\n")[0])
        return found[0] if found else None

    def wait_link(self, text: str) -> None:
        self.window.wait(lambda now: text in now["transports"]["port0"]["link"])

    def ask(self, payload: bytes, address: str = "10.0.0.2", port: int = 5000) -> bytes:
        with self.far.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((address, port))
            sock.send(payload)
            return sock.recv(65535)

    def refused(self, transport: str, *prefix: str) -> str:
        """What ``vnf run`` prints before it exits with 2, having left nothing."""
        (self.path / "b.py").write_text(ECHO)
        command = ["ip", "netns", "exec", self.near.name, *prefix, sys.executable, "-m", "libvnf", "run", "b.py"]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [*command, "--transport", transport],
            cwd=self.path,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
        return done.stderr
