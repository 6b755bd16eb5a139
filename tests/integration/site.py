"""An example on two interfaces by AF_XDP, with its own configuration file, and a kernel at the far end of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.bridge import NetNS, without_offload
from tests.integration.inspection import Window
from tests.integration.programs import QUICK, Program, inside, running
from tests.peers import Namespace

EXAMPLES = Path(__file__).parents[2] / "examples"


class Site:
    """``hosts`` are by the names of the example's ports; ``middle`` is where it runs."""

    def __init__(self, netns: NetNS, addresses: dict[str, str]) -> None:
        self.middle = netns()
        self.hosts: dict[str, Namespace] = {}
        self.program: Program
        self.window: Window
        for name, address in addresses.items():
            host = self.hosts[name] = netns()
            pair = ["eth", "type", "veth", "peer", "name", f"{name}0", "netns", self.middle.name]
            host.run("ip", "link", "add", *pair)
            for namespace, device in ((host, "eth"), (self.middle, f"{name}0")):
                without_offload(namespace, device)
                namespace.run("ip", "link", "set", device, "up")
            host.run("ip", "address", "add", address, "dev", "eth")

    def rules(self) -> int:
        count: int = self.window.look()["flows"]["open"]
        return count


@contextmanager
def site(tmp_path: Path, netns: NetNS, example: str, addresses: dict[str, str], *options: str) -> Iterator[Site]:
    """The example runs; its ports have the names of ``addresses``."""
    made = Site(netns, addresses)
    window = tmp_path / "window.sock"
    source = (EXAMPLES / example / f"{example}.py").read_text()
    source += "\nfrom tests.integration.inspection import open_window\nopen_window(vnf)\n"
    settings = ["--config", str(EXAMPLES / example / f"{example}.toml")]
    settings += [word for name in addresses for word in ("--transport", name)]
    settings += ["--set", f"window={window}", *QUICK, *options]
    with running(tmp_path, source, *settings, command=inside(made.middle)) as made.program:
        made.window = Window(window)
        try:
            yield made
        finally:
            made.window.close()
