"""``vnf run FILE[:APP]``: the same options serve ``python FILE`` when it ends with ``vnf.run()``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from .. import runtime
from ..config import Config
from ..errors import VNFError

__all__ = ["Options", "read_options", "run"]

LEVELS = ("debug", "info", "warning", "error")

OPTIONS = [
    click.Option(["--config"], metavar="FILE", help="Settings and ports, as TOML."),
    click.Option(
        ["--transport"],
        multiple=True,
        metavar="TRANSPORT",
        help="kernel (default), a port of the configuration, or memif:PATH,address=10.0.0.2/24,…; may be repeated.",
    ),
    click.Option(["--set", "sets"], multiple=True, metavar="KEY=VALUE", help="A setting, or limits.NAME; repeatable."),
    click.Option(["--capture"], metavar="FILE", help="Write what comes and goes by all ports, as pcapng."),
    click.Option(["--store"], metavar="URL", help="Where shared tables are: redis-cluster://HOST:PORT,…, memory://."),
    click.Option(["--log-level"], type=click.Choice(LEVELS), default="info", show_default=True, help="For stderr."),
]


@dataclass(frozen=True)
class Options:
    """The command line, parsed."""

    file: str | None = None
    transports: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    log_level: str = "info"
    capture: str | None = None
    store: str | None = None

    def config(self) -> Config:
        return Config.read(
            self.file, transports=self.transports, sets=self.sets, capture=self.capture, store=self.store
        )


def read_options(argv: Sequence[str], *, strict: bool) -> Options:
    """The options of a program that is a VNF; not ``strict``: others are for the program itself."""
    settings = {} if strict else {"ignore_unknown_options": True, "allow_extra_args": True}
    command = click.Command("vnf", params=list(OPTIONS), context_settings=settings, add_help_option=strict)
    try:
        with command.make_context(sys.argv[0], list(argv)) as context:
            p = context.params
            return Options(p["config"], p["transport"], p["sets"], p["log_level"], p["capture"], p["store"])
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


def run_command(
    file: str,
    config: str | None,
    transport: tuple[str, ...],
    sets: tuple[str, ...],
    log_level: str,
    capture: str | None,
    store: str | None,
) -> None:
    """Run the VNF in FILE until a signal.

    FILE:APP chooses one when the file defines several. SIGTERM finishes what is in flight and exits 0; Ctrl-C stops at
    once.
    """
    try:
        runtime.set_up_logging(log_level)
        vnf = runtime.load(file, Options(config, transport, sets, log_level, capture, store).config())
        code = runtime.run(vnf)
    except VNFError as error:
        runtime.complain(error)
        code = runtime.USAGE
    except KeyboardInterrupt:
        code = runtime.INTERRUPTED
    sys.exit(code)


run = click.Command(
    "run",
    params=[click.Argument(["file"], metavar="FILE[:APP]"), *OPTIONS],
    callback=run_command,
    help=run_command.__doc__,
)
