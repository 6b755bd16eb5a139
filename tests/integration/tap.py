"""A kernel on the far side of a TAP or TUN port: the namespace in which the VNF runs. The interface is ``vnf0``, the
kernel 10.0.0.1 and fd00::1, the VNF 10.0.0.2 and fd00::2. A namespace :func:`tests.integration.bridge.beyond` it makes
the kernel a router.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.inspection import Window
from tests.integration.programs import QUICK, Program, inside, running
from tests.peers import Namespace

DEVICE = "vnf0"


class Tap:
    """A VNF that runs, on ``vnf0``. ``window`` looks into one whose source opens it."""

    def __init__(self, namespace: Namespace, program: Program) -> None:
        self.namespace, self.program = namespace, program
        self.window: Window

    def counters(self) -> dict[str, int]:
        return self.window.counters("port0")


def transport(layer: str, keys: str = "") -> str:
    addresses = "address=10.0.0.2/24,address=fd00::2/64,gateway=10.0.0.1,gateway=fd00::1"
    return f"tap:{DEVICE},layer={layer},{addresses}" + (f",{keys}" if keys else "")


def addressed(namespace: Namespace, device: str = DEVICE) -> None:
    namespace.run("ip", "address", "add", "10.0.0.1/24", "dev", device)
    namespace.run("ip", "address", "add", "fd00::1/64", "dev", device, "nodad")


@contextmanager
def tap(
    tmp_path: Path, namespace: Namespace, source: str, *options: str, layer: str = "ethernet", keys: str = ""
) -> Iterator[Tap]:
    """``options`` are of ``vnf run``, ``keys`` of the port."""
    window = tmp_path / "window.sock" if "open_window" in source else None
    quick = [*QUICK, *options]
    quick += ["--set", f"window={window}"] if window else []
    with ExitStack() as stack:
        command = inside(namespace)
        program = stack.enter_context(
            running(tmp_path, source, "--transport", transport(layer, keys), *quick, command=command)
        )
        made = Tap(namespace, program)
        addressed(namespace)
        if window:
            made.window = Window(window)
            stack.callback(made.window.close)
        yield made
