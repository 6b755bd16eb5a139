"""``vnf trace``: the next packets of a running VNF, each with what came of it, one line per thing that happened."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..control import NoAnswer, find, printable
from ..errors import ConfigError, VNFError
from ..runtime import INTERRUPTED, USAGE, complain, terminable
from .ports import STRANGE, chosen

__all__ = ["lines", "told", "trace"]

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}
KINDS = ("arp", "ipv4", "ipv6", "fragment", "gtpu", "malformed")
# RFC 9293 §3.1, from the lowest bit.
TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
ICMP_TYPES = {
    1: {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo", 11: "time exceeded"},
    58: {1: "unreachable", 2: "too big", 3: "time exceeded", 128: "echo", 129: "echo reply"}
    | {133: "router solicitation", 134: "router advertisement", 135: "neighbour solicitation"}
    | {136: "neighbour advertisement"},
}
ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6"}
# What says no more than the lines of the packet itself.
PLAIN = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "kicks", "messages_out", "requests_opened", "requests_ended")


# --- what a person reads ------------------------------------------------------------------------------------------


def told(frame: Mapping[str, Any]) -> str:
    """A frame's headers in one line."""
    kinds = frame["kinds"]
    words = [f"vlan {frame['vlan']}"] if "vlan" in frame else []
    if "arp" in frame:
        asks = f"who has {frame['dst_ip']} tell {frame['src_ip']}"
        says = f"{frame['src_ip']} is at {frame['src_mac']}"
        words.append("ARP " + {1: asks, 2: says}.get(frame["arp"], f"operation {frame['arp']}"))
    elif "src_ip" in frame:
        words.append(f"{_side(frame, 'src')} > {_side(frame, 'dst')}")
        words.append(_transport(frame))
    else:
        ethertype = frame.get("ethertype", 0)
        words.append(f"{frame.get('src_mac', '?')} > {frame.get('dst_mac', '?')}")
        words.append(ETHERTYPES.get(ethertype, f"ethertype {ethertype:#06x}"))
    words += [kind for kind in ("fragment", "malformed") if kind in kinds]
    return " ".join([*words, f"{frame['bytes']} bytes"])


def _side(frame: Mapping[str, Any], side: str) -> str:
    address, number = frame[f"{side}_ip"], frame.get(f"{side}_port")
    if number is None:
        return str(address)
    return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"


def _transport(frame: Mapping[str, Any]) -> str:
    protocol = frame["protocol"]
    if "tcp_flags" in frame:
        return " ".join(["TCP", *(name for bit, name in enumerate(TCP_FLAGS) if frame["tcp_flags"] >> bit & 1)])
    if "icmp" in frame:
        kind, code = frame["icmp"]
        return "ICMP " + ICMP_TYPES[protocol].get(kind, f"type {kind} code {code}")
    if "teid" in frame:
        return f"GTP-U TEID {frame['teid']:#x}"
    return {6: "TCP", 17: "UDP", 132: "SCTP"}.get(protocol, f"protocol {protocol}")


def span(ns: int) -> str:
    return f"{ns} ns" if ns < 10_000 else f"{ns / 1000:,.1f} µs" if ns < 10_000_000 else f"{ns / 1e6:,.1f} ms"


def lines(packet: Mapping[str, Any], number: int, vnf: str) -> Iterator[str]:
    """One packet: what came, then what was done with it, in the order of the layers, then what left."""
    came = packet["frame"]
    clock = time.strftime("%H:%M:%S", time.localtime(packet["at_s"])) + f".{int(packet['at_s'] % 1 * 1e6):06d}"
    if came["bytes"]:
        yield f"{number:<4} {clock}  {came['port']}  {told(came)}"
    else:
        yield f"{number:<4} {clock}  {came['port']}  dropped before it could be read"
    for note in packet["notes"]:
        yield f"       {note}"
    for place, counters in packet["counters"].items():
        named = " ".join(
            name if more == 1 else f"{name} +{more}" for name, more in counters.items() if name not in PLAIN
        )
        if named:
            yield f"       {place or vnf}: {named}"
    for out in packet["out"]:
        became = "" if out["became"] == "sent" else f"  not sent: {out['became']}"
        yield f"       > {out['port']}  {told(out)}{became}"
    yield f"       {span(packet['ns'])}"


# --- the command --------------------------------------------------------------------------------------------------


def protocol(value: str) -> dict[str, Any]:
    """``--protocol``: what the engine matches."""
    if value in PROTOCOLS:
        return {"protocol": PROTOCOLS[value]}
    if value in KINDS:
        return {"kind": value}
    if value.isascii() and value.isdecimal() and int(value) < 256:
        return {"protocol": int(value)}
    raise ConfigError(f"--protocol {value}: expected {', '.join([*PROTOCOLS, *KINDS])} or a number up to 255")


PORT_NUMBER = click.IntRange(0, 65535)


@click.command()
@click.argument("vnf", required=False, metavar="[NAME|PID]")
@click.option(
    "--count", type=click.IntRange(1, 10_000), default=10, show_default=True, metavar="N", help="So many packets."
)
@click.option("--port", metavar="NAME", help="That came by this port.")
@click.option("--ip", metavar="ADDRESS[/PREFIX]", help="From or to there.")
@click.option("--src-ip", metavar="ADDRESS[/PREFIX]", help="From there.")
@click.option("--dst-ip", metavar="ADDRESS[/PREFIX]", help="To there.")
@click.option("--protocol", metavar="WORD", help="tcp, udp, icmp, icmp6, sctp, arp, gtpu, fragment … or a number.")
@click.option("--number", type=PORT_NUMBER, metavar="N", help="From or to this port number.")
@click.option("--src-port", type=PORT_NUMBER, metavar="N", help="From this port number.")
@click.option("--dst-port", type=PORT_NUMBER, metavar="N", help="To this port number.")
@click.option("--vlan", type=click.IntRange(0, 4095), metavar="ID", help="In this VLAN; 0: in none.")
@click.option("--teid", type=click.IntRange(0, 2**32 - 1), metavar="N", help="In this GTP-U tunnel.")
@click.option("--dropped", is_flag=True, help="That something dropped.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON per packet.")
def trace(vnf: str | None, count: int, as_json: bool, **match: Any) -> None:
    """The next packets of a running VNF that match, each with what came of it and how long that took.

    NAME or PID may be left out where one VNF runs. Ctrl-C ends it earlier. The VNF deals with packets one by one while
    it is traced, and is slower.
    """
    try:
        asked = {key: value for key, value in match.items() if value is not None and value is not False}
        with terminable():
            sys.exit(follow(vnf, count, as_json, asked))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except VNFError as error:
        complain(error)
        sys.exit(USAGE)


def follow(vnf: str | None, count: int, as_json: bool, match: dict[str, Any]) -> int:
    if "protocol" in match:
        match |= {"protocol": None} | protocol(match["protocol"])
        match = {key: value for key, value in match.items() if value is not None}
    peers = chosen(vnf)
    if len(peers) != 1:
        running = ", ".join(map(str, peers or find())) or "none"
        raise ConfigError(f"vnf trace: name one VNF, by name or pid: running: {running}")
    [peer] = peers
    number = 0
    # No time-out: the next packet may come when it likes.
    for told_of in peer.listen("trace", None, count=count, match=match):
        number += 1
        try:
            if "frame" not in told_of:
                if missing := int(told_of["missing"]):
                    click.echo(f"{missing} packets of {count} did not come", err=True)
                return 0
            if number > count:
                raise ValueError("more than were asked for")
            text = json.dumps(told_of) if as_json else "\n".join(map(printable, lines(told_of, number, peer.name)))
        except STRANGE:
            raise NoAnswer(f"{peer} answers in words that this version of vnf does not know") from None
        click.echo(text)
    return 1
