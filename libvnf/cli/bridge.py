"""``vnf bridge``: ports joined in pairs, natively, without a VNF.

The loop is native (``native/src/forward/run.rs``); here are the ports, the line a second and the table at the end.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from .. import runtime
from ..config import Config, PortConfig, parse_transport
from ..control import Question
from ..errors import ConfigError, TransportError, VNFError

__all__ = ["bridge", "table"]

LOG = logging.getLogger("vnf.bridge")
SHOWN = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")


def chosen(ports: tuple[str, ...], config: Config) -> list[PortConfig]:
    """The ports of the command line, by two."""
    if not ports or len(ports) % 2:
        raise ConfigError(f"{len(ports)} ports: expected pairs, such as memif:/run/a.sock memif:/run/b.sock")
    found = [parse_transport(text, config.ports, number) for number, text in enumerate(ports)]
    for number, port in enumerate(found):
        if port.type == "kernel":
            raise ConfigError("kernel: sockets have no frames to pass on: expected a port")
        if port.name in [other.name for other in found[:number]]:
            raise ConfigError(f"two ports are named {port.name!r}; add name=… to one")
    return found


def rates(before: list[dict[str, Any]], now: list[dict[str, Any]], seconds: float) -> str:
    """One line: what came by each port."""
    parts = []
    for old, new in zip(before, now, strict=True):
        frames, sent = (
            (new["counters"][name] - old["counters"][name]) / seconds for name in ("rx_frames", "tx_frames")
        )
        link = "" if new["link"] == "up" else f" ({new['link']})"
        parts.append(f"{new['name']}{link} in {frames:,.0f}/s out {sent:,.0f}/s")
    return "   ".join(parts)


def table(ports: list[dict[str, Any]]) -> str:
    """The counters as the text a person reads: those of every port, and what was dropped or lost."""
    width = max(len(port["name"]) for port in ports)
    lines = [" " * width + "".join(f"{name:>18}" for name in SHOWN)]
    lines += [
        f"{port['name']:{width}}" + "".join(f"{port['counters'].get(name, 0):>18,}" for name in SHOWN) for port in ports
    ]
    for port in ports:
        others = [f"{count:,} {name}" for name, count in port["counters"].items() if count and name not in SHOWN]
        if others:
            lines.append(f"{port['name']:{width}}  " + ", ".join(others))
    return "\n".join(lines)


def run(
    ports: list[PortConfig], duration_s: float | None, verbose: bool, capture: str | None = None
) -> list[dict[str, Any]]:
    """Until a signal, or ``duration_s`` is over; the ports' last figures."""
    from .. import _native
    from ..control import answering
    from ..transport.bypass import capture_to, captured, opening
    from .load import interrupts

    rows: list[dict[str, Any]] = []
    file, native = capture_to(capture), _native.Bridge()
    try:
        for port in ports:
            with opening(port):
                native.add_port(port.name, {"type": port.type, **port.options}, capture=file)
        begin = last = time.monotonic()
        before = rows = native.ports()
        # Ports are asked ten times a second anyway; whoever wants to know gets those figures, from a thread.
        with interrupts() as interrupted, answering("bridge", questions(lambda: (rows, last_s), ports), LOG):
            last_s = begin
            pairs = zip(ports[::2], ports[1::2], strict=True)
            click.echo("bridging " + ", ".join(f"{one} - {two}" for one, two in pairs))

            def on_progress(now: list[dict[str, Any]]) -> bool:
                nonlocal before, last, last_s, rows
                time_s = time.monotonic()
                rows, last_s = now, time_s
                if verbose and time_s - last >= 1:
                    click.echo(rates(before, now, time_s - last), err=True)
                    before, last = now, time_s
                return interrupted() or (duration_s is not None and time_s - begin >= duration_s)

            native.run([(number, number + 1) for number in range(0, len(ports), 2)], on_progress)
        rows = native.ports()
        return rows
    finally:
        native.close()
        captured(file, capture, rows)


def questions(last: Callable[[], tuple[list[dict[str, Any]], float]], ports: list[PortConfig]) -> dict[str, Question]:
    """What the control socket answers."""
    began_s = time.monotonic()

    def told(asked: Mapping[str, Any]) -> dict[str, Any]:
        from .. import _native

        rows, at_s = last()
        found = [
            {**row, "place": str(port), "drops": _native.drops(row["counters"])}
            for row, port in zip(rows, ports, strict=True)
        ]
        times = {"up_s": time.monotonic() - began_s, "at_s": at_s}
        return {"vnf": "bridge", "pid": os.getpid(), **times, "ports": found, "core": {}, "drops": {}}

    def trace(asked: Mapping[str, Any]) -> dict[str, Any]:
        raise VNFError("a bridge passes packets on unseen: --capture writes them to a file")

    return {"ports": told, "trace": trace}


@click.command()
@click.argument("ports", nargs=-1, metavar="PORT PORT…")
@click.option("--config", "file", metavar="FILE", help="Where ports are described by name, as TOML.")
@click.option("--duration", "duration_s", type=float, metavar="S", help="Stop after S seconds.  [default: at a signal]")
@click.option("--verbose", is_flag=True, help="Every second, what came and went.")
@click.option("--capture", metavar="FILE", help="Write what comes and goes by all ports, as pcapng.")
@click.option("--json", "json_target", metavar="FILE", help="Write the counters as JSON; - for standard output.")
def bridge(
    ports: tuple[str, ...],
    file: str | None,
    duration_s: float | None,
    verbose: bool,
    capture: str | None,
    json_target: str | None,
) -> None:
    """Join the first port with the second, the third with the fourth …

    What comes by one leaves by the other, at full speed and unseen. A port is one of the configuration's, or written as
    for vnf run --transport.

    \b
      vnf bridge memif:/run/a.sock memif:/run/b.sock
      vnf bridge tap:vnf0 memif:/run/b.sock,role=client --verbose
      vnf bridge pcap:in.pcap memif:/run/b.sock --duration 10

    Ctrl-C and SIGTERM end it, and print what was counted.
    """
    from .load import write_json

    try:
        if duration_s is not None and not duration_s > 0:
            raise ConfigError(f"--duration {duration_s:g}: expected more than 0 seconds")
        rows = run(chosen(ports, Config.read(file)), duration_s, verbose, capture)
    except VNFError as error:
        runtime.complain(error)
        sys.exit(runtime.USAGE)
    click.echo(table(rows), err=json_target == "-")
    if json_target is not None:
        try:
            write_json(json_target, {"ports": rows})
        except OSError as error:
            runtime.complain(TransportError(f"--json {json_target}: {error.strerror}"))
            sys.exit(runtime.USAGE)
