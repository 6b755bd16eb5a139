"""``vnf ports``: the ports of VNFs that run, their links, what passes per second, and what is dropped and why.

A rate is the difference of two answers of the VNF (:mod:`libvnf.control`) by the VNF's own clock. Texts may come from a
peer: nothing of them reaches a terminal but printable characters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from ..control import NoAnswer, Peer, find, printable
from ..errors import ConfigError, VNFError
from ..runtime import INTERRUPTED, USAGE, complain, pause, terminable

__all__ = ["STRANGE", "chosen", "ports", "table"]

RATES = ("rx_frames", "tx_frames", "rx_bytes", "tx_bytes")
STRANGE = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
"""What words that this version does not know, or that were chosen to be such, end in."""
LONGEST_CELL = 250
"""Letters: one long text would widen every row."""


def chosen(wanted: str | None) -> list[Peer]:
    """VNFs by name or pid, or all; ``ConfigError`` where one was named and does not run."""
    found = find(wanted or "")
    if wanted and not found:
        others = ", ".join(map(str, find())) or "none"
        raise ConfigError(f"{wanted}: no VNF of that name or pid runs here; running: {others}")
    return found


def per_second(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The answer ``now``, with rates since ``before``."""
    seconds = max(now["at_s"] - before["at_s"], 1e-3)

    def rates(old: Mapping[str, int], new: Mapping[str, int], names: Iterable[str]) -> dict[str, float]:
        return {f"{name}_per_s": (new[name] - old.get(name, 0)) / seconds for name in names if name in new}

    def drop_rates(old: Mapping[str, int], told: Mapping[str, Any]) -> dict[str, float]:
        return {name: (count - old.get(name, 0)) / seconds for name, count in told["drops"].items()}

    olds = {port["name"]: port["counters"] for port in before["ports"]}
    told = []
    for port in now["ports"]:
        old = olds.get(port["name"], {})
        told.append({**port, **rates(old, port["counters"], RATES), "drops_per_s": drop_rates(old, port)})
    messages = rates(before["core"], now["core"], ("messages_in", "messages_out"))
    return {**now, **messages, "ports": told, "drops_per_s": drop_rates(before["core"], now)}


# --- what a person reads ------------------------------------------------------------------------------------------


def span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def bits(rate: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= size:
            return f"{rate / size:.1f} {unit}"
    return f"{rate:.0f}"


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> Iterator[str]:
    """Columns side by side; those in ``right`` hold numbers."""
    rows = [[printable(cell[:LONGEST_CELL]) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(w) if n in right else cell.ljust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


def table(vnf: Mapping[str, Any]) -> str:
    """One VNF, with its rates."""
    core = vnf["core"]
    lines = [printable(f"{vnf['vnf']} (pid {vnf['pid']}): up {span(vnf['up_s'])}")]
    if core:  # a bridge has neither connections nor messages
        lines[0] += (
            f", {core['connections_open']:,} connections, {vnf['messages_in_per_s']:,.0f} messages/s in, "
            f"{vnf['messages_out_per_s']:,.0f} out"
        )
    rows: list[tuple[str, ...]] = [("port", "rx/s", "tx/s", "rx bit/s", "tx bit/s", "place", "addresses", "link")]
    for port in vnf["ports"]:
        lacks = port["counters"].get("capture_lost")
        link = ", ".join(
            text
            for text in (port.get("link"), port.get("peer"), lacks and f"the capture lacks {lacks:,} frames")
            if text
        )
        numbers: tuple[str, ...] = ("",) * 4
        if "rx_frames_per_s" in port:
            frames = (f"{port['rx_frames_per_s']:,.0f}", f"{port['tx_frames_per_s']:,.0f}")
            numbers = (*frames, bits(port["rx_bytes_per_s"] * 8), bits(port["tx_bytes_per_s"] * 8))
        texts = (port["place"], " ".join(port.get("addresses", ())), link)
        rows.append((port["name"], *numbers, *texts))
    lines += aligned(rows, right=(1, 2, 3, 4))
    places = [(port["name"], port) for port in vnf["ports"]] + [(vnf["vnf"], vnf)]
    rows = [
        (place, name, f"{count:,}", f"{told['drops_per_s'][name]:,.0f}")
        for place, told in places
        for name, count in told["drops"].items()
    ]
    if rows:
        lines += ["", *aligned([("dropped by", "why", "packets", "per s"), *rows], right=(2, 3))]
    return "\n".join(lines)


# --- the command --------------------------------------------------------------------------------------------------


def answers(
    peers: Iterable[Peer], before: Mapping[Peer, dict[str, Any]] | None = None
) -> tuple[dict[Peer, dict[str, Any]], bool]:
    """What each says, and whether all did; those that do not are named on standard error."""
    told, all_did = {}, True
    for peer in peers:
        try:
            answer = peer.ask("ports")
            told[peer] = understood(peer, (before or {}).get(peer, answer), answer)
        except VNFError as error:
            all_did = False
            complain(error)
    return told, all_did


def understood(peer: Peer, before: Mapping[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """``told``, if it has all that is shown of it, and fits what was told ``before``."""
    try:
        table(per_second(before, told))
        json.dumps(told, indent=2)
    except STRANGE:
        raise NoAnswer(f"{peer} answers in words that this version of vnf does not know") from None
    return told


def show(told: Sequence[Mapping[str, Any]], *, as_json: bool, watches: bool) -> None:
    if as_json:
        click.echo(json.dumps(told, indent=None if watches else 2))
        return
    if not told and not watches:
        return
    clear = "\x1b[H\x1b[J" if watches and sys.stdout.isatty() else ""
    click.echo(clear + "\n\n".join(map(table, told)) + ("\n" if watches and not clear else ""))


@click.command()
@click.argument("vnf", required=False, metavar="[NAME|PID]")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON: a list with an object per VNF.")
@click.option("--watch", "watches", is_flag=True, help="Again and again until Ctrl-C; with --json a line each time.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds that rates are measured over.",
)
def ports(vnf: str | None, as_json: bool, watches: bool, interval_s: float) -> None:
    """Ports, links, peers, rates and drops of the VNFs that run here.

    Those of this user are shown; root sees everybody's. The exit code is 1 when one of them does not answer.
    """
    try:
        with terminable():
            sys.exit(watch(vnf, as_json=as_json, watches=watches, interval_s=interval_s))
    except KeyboardInterrupt:
        sys.exit(0 if watches else INTERRUPTED)
    except VNFError as error:
        complain(error)
        sys.exit(USAGE)


def watch(vnf: str | None, *, as_json: bool, watches: bool, interval_s: float) -> int:
    peers = chosen(vnf)
    if not peers and not watches and not as_json:
        click.echo("no VNF runs here", err=True)
        return 0
    before, all_did = answers(peers)
    while True:
        if before or watches:
            pause(interval_s)
        now, did = answers(chosen(vnf) if watches else before, before)
        show([per_second(before.get(peer, told), told) for peer, told in now.items()], as_json=as_json, watches=watches)
        if not watches:
            return 0 if all_did and did else 1
        before = now
