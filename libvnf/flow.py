"""What is done with packets that match, decided once: plain values.

``vnf.flows.install(Match(…), [actions])`` gives them to the native table, and packets that match are not seen by Python
any more. What cannot be true (an address that is none, an action after the last one, a tunnel from IPv4 to IPv6) is a
:class:`~libvnf.ConfigError` where the value is made, or where a rule is made of them.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from .errors import ConfigError

__all__ = [
    "Action",
    "FiveTuple",
    "Match",
    "Statistics",
    "accept",
    "count",
    "decapsulate",
    "drop",
    "encapsulate",
    "forward",
    "limit",
    "reply",
    "rewrite",
    "route",
    "to_python",
]

PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmp6": 58, "sctp": 132}
"""IANA's protocol numbers, of those that have a name here and are kept by it."""
ETHERTYPES = {"ipv4": 0x0800, "arp": 0x0806, "ipv6": 0x86DD}
GTP_PORT = 2152
"""GTP-U (3GPP TS 29.281 §4.4.2)."""
WITH_PORTS = ("icmp", "tcp", "udp", "icmp6")
"""Of an ICMP query the identifier is the port of the side that asks."""
MOST_ACTIONS = 16
ENDS = ("forward", "route", "reply", "drop", "accept", "to_python")


def _wrong(name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"{value!r}: expected {wanted}", key=name)


def _number(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is int and low <= value <= high:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return int(value)
    raise _wrong(name, value, f"a whole number from {low} to {high}")


def _positive(name: str, value: Any, least: float = 0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _wrong(name, value, "a number")
    if value <= 0 or value < least:
        raise _wrong(name, value, f"at least {least:g}" if least else "more than 0")
    return float(value)


def _named(name: str, value: Any, names: dict[str, int], high: int) -> int:
    if isinstance(value, str):
        if value.lower() not in names:
            raise _wrong(name, value, f"a number from 0 to {high}, or {', '.join(names)}")
        return names[value.lower()]
    return _number(name, value, 0, high)


def _protocol(name: str, value: Any) -> int | str:
    number = _named(name, value, PROTOCOLS, 255)
    return next((name for name, known in PROTOCOLS.items() if known == number), number)


def _address(name: str, value: Any) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else str(value)))
    except ValueError:
        raise _wrong(name, value, "an address such as 10.0.0.2 or fd00::2") from None


def _prefix(name: str, value: Any) -> str:
    """One address, or all that begin alike."""
    if "/" not in str(value):
        return _address(name, value)
    try:
        network = ipaddress.ip_network(str(value))
    except ValueError as error:
        hint = ": the bits after the prefix are not 0" if "host bits" in str(error) else ""
        raise _wrong(name, value, f"an address, or a prefix such as 10.0.0.0/8{hint}") from None
    alone = network.prefixlen == network.max_prefixlen
    return str(network.network_address if alone else network)


def _mac(name: str, value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        return value.lower()
    raise _wrong(name, value, "six bytes such as 02:00:00:00:00:02")


def _port_name(name: str, value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise _wrong(name, value, "the name of a port")


READERS: dict[str, Any] = {
    "port": _port_name,
    "src_mac": _mac,
    "dst_mac": _mac,
    "vlan": lambda name, value: _number(name, value, 0, 4094),
    "ethertype": lambda name, value: _named(name, value, ETHERTYPES, 0xFFFF),
    "protocol": _protocol,
    "src_port": lambda name, value: _number(name, value, 0, 0xFFFF),
    "dst_port": lambda name, value: _number(name, value, 0, 0xFFFF),
    "teid": lambda name, value: _number(name, value, 0, 0xFFFF_FFFF),
    "ttl": lambda name, value: _number(name, value, 1, 255),
    "dscp": lambda name, value: _number(name, value, 0, 63),
    "priority": lambda name, value: _number(name, value, -(2**31), 2**31 - 1),
}
"""How each field is read, and in what form it is kept."""


def _read(value: Any, address: Any) -> None:
    """Checks the fields of a value that is being made, and keeps each in its one form."""
    for spec in fields(value):
        given = getattr(value, spec.name)
        if given is not None:
            try:
                kept = READERS.get(spec.name, address)(spec.name, given)
            except ConfigError as error:
                raise ConfigError(error.problem, key=f"{type(value).__name__.lower()}: {error.key}") from None
            object.__setattr__(value, spec.name, kept)


def _version(*addresses: str | None) -> int | None:
    """4 or 6; None when nothing is said. ``ConfigError`` when they differ."""
    versions = {6 if ":" in address else 4 for address in addresses if address is not None}
    if len(versions) > 1:
        raise ConfigError(f"{' and '.join(str(one) for one in addresses)}: expected both IPv4, or both IPv6")
    return versions.pop() if versions else None


@dataclass(frozen=True, slots=True)
class Match:
    """What a packet must be like. What is not said may be anything."""

    port: str | None = None
    """It came by this one."""
    src_mac: str | None = None
    dst_mac: str | None = None
    vlan: int | None = None
    """The outermost tag's id; 0 for untagged."""
    ethertype: int | str | None = None
    """A number, or "ipv4", "ipv6", "arp"."""
    src_ip: str | None = None
    """An address, or a prefix such as "10.0.0.0/8"."""
    dst_ip: str | None = None
    protocol: int | str | None = None
    """A number, or a name such as "tcp"."""
    src_port: int | None = None
    """Of TCP and UDP; an ICMP query's identifier is the port of the side that asks. Fragments have none."""
    dst_port: int | None = None
    teid: int | None = None
    """Of a GTP-U packet."""
    priority: int = 0
    """Of several that match the highest counts; of equals the one that says more, then the older one."""

    def __repr__(self) -> str:
        said = [(spec.name, value) for spec in fields(self) if (value := getattr(self, spec.name)) != spec.default]
        return f"Match({', '.join(f'{name}={value!r}' for name, value in said)})"

    def __post_init__(self) -> None:
        _read(self, _prefix)
        version = _version(self.src_ip, self.dst_ip)
        if (
            self.ethertype is not None
            and version is not None
            and self.ethertype != (0x0800 if version == 4 else 0x86DD)
        ):
            raise ConfigError(f"{self.ethertype:#06x} has no IPv{version} addresses", key="match: ethertype")
        ports = self.src_port is not None or self.dst_port is not None
        if ports and self.protocol is not None and self.protocol not in WITH_PORTS:
            raise ConfigError(f"{self.protocol} has no ports: expected tcp, udp or icmp", key="match: protocol")
        if self.teid is not None and self.protocol not in (None, "udp"):
            raise ConfigError("GTP-U runs over udp", key="match: protocol")

    @classmethod
    def of(cls, five: FiveTuple, *, port: str | None = None, priority: int = 0) -> Match:
        """Just this conversation's packets in this direction, by ``port`` where that is said."""
        addresses = {"src_ip": five.src_ip, "dst_ip": five.dst_ip}
        ports = {"src_port": five.src_port, "dst_port": five.dst_port}
        return cls(port=port, protocol=five.protocol, priority=priority, **addresses, **ports)  # type: ignore[arg-type]

    @property
    def protocol_number(self) -> int | None:
        """IANA's."""
        return PROTOCOLS[self.protocol] if isinstance(self.protocol, str) else self.protocol

    @property
    def version(self) -> int | None:
        """4 or 6, where addresses or the ethertype say so."""
        by_type = {0x0800: 4, 0x86DD: 6}.get(self.ethertype) if isinstance(self.ethertype, int) else None
        return by_type or _version(self.src_ip, self.dst_ip)


@dataclass(frozen=True, slots=True)
class FiveTuple:
    """What tells one conversation from all others."""

    protocol: int | str
    src_ip: str
    src_port: int
    dst_ip: str
    dst_port: int

    def __post_init__(self) -> None:
        _read(self, _address)
        _version(self.src_ip, self.dst_ip)

    def reversed(self) -> FiveTuple:
        """That of the answers."""
        return FiveTuple(self.protocol, self.dst_ip, self.dst_port, self.src_ip, self.src_port)

    def replace(self, **changed: Any) -> FiveTuple:
        """The same but for these fields."""
        return replace(self, **changed)

    @classmethod
    def of(cls, packet: Any) -> FiveTuple | None:
        """A frame's, by its attributes; None where there is none: other protocols, fragments, ICMP errors, no IP."""
        protocol = _protocol("protocol", packet.protocol)
        if packet.src_ip is None or protocol not in WITH_PORTS or packet.is_fragment or packet.is_malformed:
            return None
        if not (packet.src_port or packet.dst_port):
            return None
        return cls(protocol, packet.src_ip, packet.src_port, packet.dst_ip, packet.dst_port)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one rule, since it was installed."""

    packets: int
    bytes: int
    limited: int
    """Of the packets, dropped by its token bucket."""
    failed: int
    """Of the packets, dropped because an action was not possible: no room, no GTP-U, another IP version."""
    idle_s: float
    """Since the last packet; since it was installed, when there was none."""


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a rule. ``forward, route, reply, drop, accept, to_python`` end it."""

    kind: ClassVar[str] = ""
    ends: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Plain(Action):
    """An action that needs no more said: ``drop``, or ``drop()``."""

    kind: str  # type: ignore[misc]
    ends: bool  # type: ignore[misc]

    def __call__(self) -> Plain:
        return self


count = Plain("count", False)
"""Only counts, as every rule does: for rules that say no more."""
decapsulate = Plain("decapsulate", False)
"""Takes the outer IP, UDP and GTP-U headers off; the Ethernet header stays."""
drop = Plain("drop", True)
reply = Plain("reply", True)
"""Back out of the port it came by, link addresses exchanged."""
accept = Plain("accept", True)
"""To the port's own host: ARP, TCP, UDP, as without rules."""
to_python = Plain("to_python", True)
"""To the ``@vnf.frames`` handler of the port it came by."""


@dataclass(frozen=True, slots=True)
class Forward(Action):
    kind: ClassVar[str] = "forward"
    ends: ClassVar[bool] = True
    port: str

    def __post_init__(self) -> None:
        _read(self, None)


@dataclass(frozen=True, slots=True)
class Route(Action):
    kind: ClassVar[str] = "route"
    ends: ClassVar[bool] = True
    port: str

    def __post_init__(self) -> None:
        _read(self, None)


@dataclass(frozen=True, slots=True)
class Limit(Action):
    kind: ClassVar[str] = "limit"
    bps: float
    burst_bytes: float

    def __post_init__(self) -> None:
        for name, value, least in (("bps", self.bps, 0), ("burst_bytes", self.burst_bytes, 64)):
            object.__setattr__(self, name, _positive(f"limit: {name}", value, least))


@dataclass(frozen=True, slots=True)
class Rewrite(Action):
    kind: ClassVar[str] = "rewrite"
    src_mac: str | None = None
    dst_mac: str | None = None
    vlan: int | None = None
    src_ip: str | None = None
    dst_ip: str | None = None
    src_port: int | None = None
    dst_port: int | None = None
    ttl: int | None = None
    dscp: int | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, spec.name) is None for spec in fields(self)):
            raise ConfigError("rewrite(): nothing is to be rewritten")
        _read(self, _address)
        _version(self.src_ip, self.dst_ip)


@dataclass(frozen=True, slots=True)
class Encapsulate(Action):
    kind: ClassVar[str] = "encapsulate"
    teid: int
    src_ip: str
    dst_ip: str
    src_port: int

    def __post_init__(self) -> None:
        if None in (self.src_ip, self.dst_ip):
            raise ConfigError("encapsulate: expected src_ip and dst_ip, of the tunnel's two ends")
        _read(self, _address)
        _version(self.src_ip, self.dst_ip)


def forward(port: str) -> Forward:
    """Out of ``port`` as it is."""
    return Forward(port)


def route(port: str) -> Route:
    """Out of ``port`` as a router does it: the hop limit one less, to the next hop's link address."""
    return Route(port)


def limit(bps: float, burst_bytes: float) -> Limit:
    """A token bucket: ``bps`` bits a second on average, ``burst_bytes`` at once; what is more is dropped."""
    return Limit(bps, burst_bytes)


def rewrite(
    *,
    src_mac: str | None = None,
    dst_mac: str | None = None,
    vlan: int | None = None,
    src_ip: str | None = None,
    dst_ip: str | None = None,
    src_port: int | None = None,
    dst_port: int | None = None,
    ttl: int | None = None,
    dscp: int | None = None,
) -> Rewrite:
    """New values of header fields; checksums follow. ``vlan=0`` takes the tag off."""
    return Rewrite(src_mac, dst_mac, vlan, src_ip, dst_ip, src_port, dst_port, ttl, dscp)


def encapsulate(teid: int, src_ip: str, dst_ip: str, src_port: int = GTP_PORT) -> Encapsulate:
    """Into a GTP-U tunnel (3GPP TS 29.281) between two addresses; the Ethernet header stays."""
    return Encapsulate(teid, src_ip, dst_ip, src_port)


# --- rules -----------------------------------------------------------------------------------------------------------


def checked(match: Match, actions: Action | Iterable[Action]) -> tuple[Action, ...]:
    """The actions, if they are a rule for ``match``; else :class:`ConfigError`.

    A rule that only counts or limits need not say where packets go: as if no rule had matched.
    """
    if not isinstance(match, Match):
        raise ConfigError(f"{match!r} is not a Match")
    steps = (actions,) if isinstance(actions, Action) else tuple(actions)
    for step in steps:
        if not isinstance(step, Action):
            raise ConfigError(f"{step!r} is not an action: expected forward(…), drop or another of libvnf.flow")
    if not 1 <= len(steps) <= MOST_ACTIONS:
        raise ConfigError(f"{len(steps)} actions: expected 1 to {MOST_ACTIONS}")
    for number, step in enumerate(steps[:-1], 1):
        if step.ends:
            raise ConfigError(
                f"{step.kind} ends the rule: it is action {number} of {len(steps)}, expected it to be the last"
            )
    if sum(isinstance(step, Limit) for step in steps) > 1:
        raise ConfigError("two limits: expected one at most")
    if not steps[-1].ends and not all(step is count or isinstance(step, Limit) for step in steps):
        raise ConfigError(f"packets are changed, and then? Expected {', '.join(ENDS)} as the last action")
    version, protocol = match.version, match.protocol
    for number, step in enumerate(steps):
        if isinstance(step, Rewrite):
            _check_rewrite(step, version, protocol)
        elif isinstance(step, Encapsulate):
            if number == 0 and version is None and match.ethertype is not None:
                raise ConfigError(f"encapsulate: a tunnel carries IPv4 and IPv6, not {match.ethertype:#06x}")
            version, protocol = _version(step.src_ip), "udp"
        elif step is decapsulate:
            if protocol not in (None, "udp"):
                raise ConfigError(f"decapsulate: GTP-U runs over udp, and the packets are {protocol}")
            version = protocol = None  # of the inner packet nothing is known
    return steps


def _check_rewrite(step: Rewrite, version: int | None, protocol: int | str | None) -> None:
    wanted = _version(step.src_ip, step.dst_ip)
    if None not in (wanted, version) and wanted != version:
        raise ConfigError(f"rewrite: {step.src_ip or step.dst_ip} is IPv{wanted}, and the packets are IPv{version}")
    if protocol not in (None, *WITH_PORTS) and (step.src_port is not None or step.dst_port is not None):
        raise ConfigError(f"rewrite: {protocol} has no ports: expected tcp, udp or icmp")


def port_names(match: Match, steps: Iterable[Action]) -> list[str]:
    """Every port that a rule speaks of."""
    names = [step.port for step in steps if isinstance(step, (Forward, Route))]
    return names if match.port is None else [match.port, *names]
