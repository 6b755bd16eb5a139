"""The ``vnf`` command. A subcommand's module is imported when it is called, so that ``vnf run`` starts fast."""

from __future__ import annotations

import importlib
from typing import Any

import click

__all__ = ["main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("libvnf.cli.run:run", "Run a VNF: vnf run FILE[:APP]"),
    "bridge": ("libvnf.cli.bridge:bridge", "Join ports in pairs: vnf bridge PORT PORT"),
    "ports": ("libvnf.cli.ports:ports", "Ports of running VNFs: links, rates, drops by reason"),
    "trace": ("libvnf.cli.trace:trace", "The next packets of a running VNF, and what came of each"),
    "state": ("libvnf.cli.state:state", "Look into the tables of a store, and change entries"),
    "load": ("libvnf.cli.load:load", "Send requests and measure the replies, or answer them"),
}
"""Name → where it is, and its line in ``vnf --help``."""


class LazyGroup(click.Group):
    """A group that knows its commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: Any = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """libvnf: virtual network functions in Python on a native data plane."""
