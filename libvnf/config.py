"""Frozen settings: TOML file < environment < command line. The only module that reads ``os.environ``.

Everything is parsed here, once, into values whose type is the proof; a mistake is one line with file, line and key.
What code says itself (``VNF(limits=…)``, ``setting(default=…)``) is weaker than all three sources.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from . import _native
from .errors import ConfigError, Unsupported

__all__ = [
    "Config",
    "EndpointURL",
    "Limits",
    "PortConfig",
    "closest",
    "control_directories",
    "parse_transport",
    "without_password",
]

T = TypeVar("T", str, int, float, bool, list[str])

SCHEMES = ("tcp", "udp", "sctp", "unix")
# Known words of the file format whose time has not come: naming them beats "unknown key".
LATER_VNF_KEYS = ("file", "replicas", "serves", "app", "plugins", "tables")
LATER_TABLES = ("lb", "cluster")
STORES = {
    "memory": "memory://",
    "redis+embedded": "redis+embedded://DIR",
    "redis": "redis://HOST:PORT",
    "rediss": "rediss://HOST:PORT",
    "redis-cluster": "redis-cluster://HOST:PORT,HOST:PORT",
    "rediss-cluster": "rediss-cluster://HOST:PORT,HOST:PORT",
}


def closest(word: str, allowed: Iterable[str], form: str = "{}") -> str:
    """`` (did you mean X?)``, or nothing."""
    import difflib

    match = difflib.get_close_matches(word, list(allowed), n=1)
    return f" (did you mean {form.format(match[0])}?)" if match else ""


# --- endpoints ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndpointURL:
    """``tcp://HOST:PORT``, ``udp://…``, ``sctp://…`` or ``unix://PATH``; ``?port=NAME`` chooses one of several ports.

    An empty host is loopback on kernel sockets and every address of a bypass port. IPv6 is written in brackets.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    via: str = ""

    @classmethod
    def parse(cls, text: str) -> EndpointURL:
        scheme, found, rest = text.partition("://")
        if not found or scheme not in SCHEMES:
            hint = closest(scheme, SCHEMES, "{}://") if found else ""
            raise ConfigError(f"{text!r} is not an endpoint: expected tcp://, udp://, sctp:// or unix://{hint}")
        if scheme == "unix":
            return cls._unix(text, rest)
        rest, _, query = rest.partition("?")
        via = query.removeprefix("port=")
        if query and (via == query or not via):
            raise ConfigError(f"{text!r} is not an endpoint: only ?port=NAME may follow the port number")
        host, colon, number = rest.rpartition(":")
        if not colon or "]" in number:
            raise ConfigError(f"{text!r} has no port: expected {scheme}://HOST:PORT")
        if not (number.isascii() and number.isdecimal()) or int(number) > 65535:
            raise ConfigError(f"{text!r}: port {number!r} is not a number from 0 to 65535")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if not is_ip(host):
                raise ConfigError(f"{text!r}: [{host}] is not an IPv6 address")
        elif ":" in host:
            raise ConfigError(f"{text!r}: an IPv6 address is written in brackets: {scheme}://[{host}]:{number}")
        elif not re.fullmatch(r"[A-Za-z0-9._-]*", host):
            raise ConfigError(f"{text!r}: {host!r} is not a host name or an address")
        return cls(scheme, host, int(number), "", via)

    @classmethod
    def _unix(cls, text: str, path: str) -> EndpointURL:
        if not path:
            raise ConfigError(f"{text!r} has no path: expected unix:///run/vnf/b.sock")
        # sun_path holds 108 bytes with its NUL (unix(7)).
        if len(os.fsencode(path)) > 107 or "\0" in path:
            raise ConfigError(f"{text!r}: the path of a Unix socket is at most 107 bytes")
        return cls("unix", "", 0, path)

    @property
    def datagram(self) -> bool:
        return self.scheme == "udp"

    def supported(self) -> EndpointURL:
        """Itself; :class:`Unsupported` for ``sctp://``."""
        if self.scheme == "sctp":
            raise Unsupported(f"{self}: sctp:// is not supported yet; use tcp:// or udp://")
        return self

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        via = f"?port={self.via}" if self.via else ""
        return f"{self.scheme}://{join_host(self.host, self.port)}{via}"


def join_host(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ip(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# --- limits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Every default in one place. Over a limit: refused early, counted. Units are in the names."""

    connect_s: float = 5.0
    """A connection that is not made by then fails."""
    ask_s: float = 10.0
    """``conn.ask`` and ``client.ask`` while no connection is up."""
    idle_s: float = 60.0
    """A datagram server forgets a peer after so long without a datagram. Streams have no such limit."""
    max_connections: int = 100_000
    max_requests: int = 100_000
    max_buffered_bytes: int = 4 << 20
    """Per connection, sent by the author and not yet taken by the transport."""
    max_kept_bytes: int = 64 << 20
    """Per VNF, of buffers that Python keeps packets in."""
    max_kept_bytes_per_connection: int = 16 << 20
    max_flows: int = 1 << 20
    """Rules that are installed at a time; each takes about 200 bytes."""
    grace_s: float = 0.5
    """After SIGTERM: accept still what was already steered here."""
    drain_s: float = 10.0
    """After that: finish what is in flight, then reset the rest."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, bool) or not isinstance(value, int if spec.name.startswith("max") else (int, float)):
                raise ConfigError(f"{value!r} is not a number", key=f"limits.{spec.name}")
            if not 0 <= value < 2**53 or (value == 0 and spec.name not in ("grace_s", "drain_s")):
                raise ConfigError(f"{value!r} is out of range: expected more than 0", key=f"limits.{spec.name}")

    def native(self) -> dict[str, float]:
        """What the native core enforces; the rest is Python's."""
        return {name: value for name, value in asdict(self).items() if name == "idle_s" or name.startswith("max_")}


# --- ports -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortConfig:
    """One transport: ``kernel``, or a port with its own addresses. ``options`` is what the native engine is given."""

    name: str
    type: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        places = [str(self.options.get(key, "")) for key in PORT_KEYS.get(self.type, ())[: PLACES.get(self.type, 0)]]
        return f"{self.type}:{','.join(places)}".rstrip(",:")


def _list(value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError("expected a text or a list of texts")
    return list(items)


def _map(value: Any) -> dict[str, str]:
    pairs = dict(item.partition("=")[::2] for item in _list(value)) if not isinstance(value, Mapping) else dict(value)
    for key, target in pairs.items():
        for side in (key, target):
            if not isinstance(side, str):
                raise ValueError('expected texts: { "10.0.0.3:5000" = "127.0.0.1:6000" }')
            EndpointURL.parse(f"tcp://{side}")
    return pairs


# What a port is told is checked where it is used (native/src/port/options.rs).
PORT_KEYS: dict[str, tuple[str, ...]] = {
    "kernel": ("map",),
    **{kind: tuple(keys) for kind, keys, _ in _native.port_kinds()},
}
PLACES: dict[str, int] = {"kernel": 0, **{kind: places for kind, _, places in _native.port_kinds()}}
"""How many of a kind's first keys the one-line form takes without their names."""
TRANSPORTS = tuple(PORT_KEYS)


def port_config(name: str, table: Mapping[str, Any]) -> PortConfig:
    """A validated port; :class:`ConfigError` with the key relative to ``port.NAME``."""
    kind = table.get("type")
    if kind is None:
        raise ConfigError(f"missing: expected one of {', '.join(TRANSPORTS)}", key="type")
    if kind not in PORT_KEYS:
        hint = closest(str(kind), TRANSPORTS)
        raise ConfigError(f"{kind!r} is not a transport: expected one of {', '.join(TRANSPORTS)}{hint}", key="type")
    known = PORT_KEYS[kind]
    options: dict[str, Any] = {}
    for key, value in table.items():
        if key == "type":
            continue
        if key not in known:
            raise ConfigError(f"unknown key: {kind} knows {', '.join(known)}{closest(key, known)}", key=key)
        try:
            options[key] = _map(value) if key == "map" else _native.port_option(kind, key, value)
        except ConfigError as error:
            raise ConfigError(error.problem, key=key) from None
        except ValueError as error:
            found = "" if key == "secret" else f"{value!r}: "
            raise ConfigError(f"{found}{error}", key=key) from None
    if kind != "kernel":
        try:
            _native.port_check({"type": kind, **options})
        except ValueError as error:
            key, _, problem = str(error).partition(": ")
            raise ConfigError(problem, key=key) from None
    return PortConfig(name, kind, MappingProxyType(options))


def parse_transport(text: str, ports: Mapping[str, PortConfig], number: int = 0) -> PortConfig:
    """``kernel``, a port's name, or the one-line form ``memif:PATH,key=value,…`` (a repeated key makes a list)."""
    if text in ports:
        return ports[text]
    kind, colon, rest = text.partition(":")
    shown = re.sub(r",secret=[^,]*", ",secret=…", text)
    if kind not in TRANSPORTS:
        allowed = [*TRANSPORTS, *ports]
        raise ConfigError(f"--transport {shown!r}: expected {', '.join(allowed)}{closest(kind, [*TRANSPORTS, *ports])}")
    table: dict[str, Any] = {"type": kind}
    for place, item in enumerate(rest.split(",") if colon else ()):
        key, equals, value = item.partition("=")
        if place < PLACES[kind] and (not equals or (place == 0 and key not in PORT_KEYS[kind])):
            table[PORT_KEYS[kind][place]] = item
            continue
        if not equals:
            raise ConfigError(f"--transport {shown!r}: {item!r} is not key=value")
        if key not in table:
            table[key] = value
        elif isinstance(table[key], list):
            table[key].append(value)
        else:
            table[key] = [table[key], value]
    name = str(table.pop("name", f"port{number}" if kind != "kernel" else "kernel"))
    try:
        return port_config(name, table)
    except ConfigError as error:
        raise ConfigError(f"--transport {shown!r}: {error}") from None


# --- places ------------------------------------------------------------------------------------------------------


def control_directories(uid: int, environment: Mapping[str, str] | None = None) -> list[str]:
    """Where the control sockets of a user's VNFs are: the first that can be used. ``VNF_CONTROL`` names another one."""
    environment = os.environ if environment is None else environment
    if chosen := environment.get("VNF_CONTROL"):
        return [chosen]
    runtime = "/run" if uid == 0 else environment.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    return [f"{runtime}/vnf", f"{environment.get('TMPDIR') or '/tmp'}/vnf-{uid}"]


def store_url(text: object) -> str:
    """A store's URL, of a known kind; the rest is read where it is used (``state/url.py``)."""
    if not isinstance(text, str):
        raise ConfigError(f"{text!r} is not a text: expected such as redis://127.0.0.1:6379")
    scheme, found, _ = text.partition("://")
    if not found or scheme not in STORES:
        listed = ", ".join(STORES.values())
        hint = closest(scheme, STORES, "{}://") if found else ""
        raise ConfigError(f"{without_password(text)!r} is not a store: expected one of {listed}{hint}")
    return text


def without_password(url: str) -> str:
    """For people: a store's URL, its password left out."""
    return re.sub(r"//[^@/]*@", "//…@", url)


# --- the sources, merged -----------------------------------------------------------------------------------------


def line_of(text: str, path: Sequence[str]) -> int | None:
    """The line of the TOML ``text`` where ``path``, or the nearest table around it, is written."""
    word = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
    header = re.compile(rf"\s*\[\[?\s*({word}(?:\s*\.\s*{word})*)\s*\]")
    assignment = re.compile(rf"\s*({word}(?:\s*\.\s*{word})*)\s*=")
    inside: list[str] = []
    best: tuple[int, int | None] = (0, None)
    for number, line in enumerate(text.splitlines(), 1):
        if match := header.match(line):
            here = inside = [part.strip("\"'") for part in re.findall(word, match[1])]
        elif match := assignment.match(line):
            here = inside + [part.strip("\"'") for part in re.findall(word, match[1])]
        else:
            continue
        if len(here) > best[0] and list(path[: len(here)]) == here:
            best = (len(here), number)
        elif best[1] is None and here[: len(path)] == list(path):
            best = (0, number)  # the first of the tables below it
    return best[1]


def _convert(text: str, like: object) -> Any:
    """``text`` of the environment or command line, as the type of ``like``; ValueError says what was expected."""
    if isinstance(like, bool):
        if text.lower() not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            raise ValueError("expected true or false")
        return text.lower() in ("true", "yes", "on", "1")
    if isinstance(like, (int, float)):
        try:
            return type(like)(text)
        except ValueError:
            raise ValueError("expected a whole number" if isinstance(like, int) else "expected a number") from None
    if isinstance(like, list):
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _same_type(value: Any, like: object) -> Any:
    """A TOML value as the type of ``like``."""
    if isinstance(like, bool) or isinstance(value, bool):
        good, wanted = isinstance(value, bool) and isinstance(like, bool), type(like).__name__
    elif isinstance(like, float):
        good, wanted = isinstance(value, (int, float)), "number"
    elif isinstance(like, list):
        good, wanted = isinstance(value, list) and all(isinstance(item, str) for item in value), "list of texts"
    else:
        good = isinstance(value, type(like))
        wanted = {"str": "text", "int": "whole number"}.get(type(like).__name__, type(like).__name__)
    if not good:
        raise ValueError(f"expected a {wanted}")
    return float(value) if isinstance(like, float) else value


@dataclass(frozen=True)
class Config:
    """What the operator asked for. Immutable; ``Config.read`` is the way in."""

    file: str | None = None
    text: str = ""
    vnfs: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    ports: Mapping[str, PortConfig] = field(default_factory=lambda: MappingProxyType({}))
    transports: tuple[PortConfig, ...] = (PortConfig("kernel", "kernel"),)
    sets: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    capture: str | None = None
    """The file that what comes and goes by all ports is written to."""
    store: str = "memory://"
    """Where shared tables are."""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def read(
        cls,
        file: str | None = None,
        *,
        transports: Sequence[str] = (),
        sets: Sequence[str] = (),
        capture: str | None = None,
        store: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Config:
        """Reads and checks all sources; :class:`ConfigError` for the first mistake."""
        environment = os.environ if environment is None else environment
        config = cls(environment=MappingProxyType({k: v for k, v in environment.items() if k.startswith("VNF_")}))
        if file is not None:
            config = config._with_file(file)
        pairs: dict[str, str] = {}
        for item in sets:
            key, equals, value = item.partition("=")
            if not equals or not key:
                raise ConfigError(f"--set {item!r}: expected KEY=VALUE")
            pairs[key] = value
        chosen = tuple(parse_transport(text, config.ports, number) for number, text in enumerate(transports))
        names = [port.name for port in chosen]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"--transport: two transports are named {name!r}; add name=… to one")
        transports_chosen = chosen or config.transports
        if capture is not None and all(port.type == "kernel" for port in transports_chosen):
            raise ConfigError("there is no port: what comes over kernel sockets, tcpdump records", key="--capture")
        config = config._with_store(store)
        return replace(config, sets=MappingProxyType(pairs), transports=transports_chosen, capture=capture)

    def _with_store(self, option: str | None) -> Config:
        variable = self.environment.get("VNF_STORE")
        for place, url in (("--store", option), ("VNF_STORE", variable)):
            if url is not None:
                try:
                    return replace(self, store=store_url(url))
                except ConfigError as error:
                    raise ConfigError(error.problem, key=place) from None
        return self

    def _with_file(self, file: str) -> Config:
        import tomllib

        try:
            with open(file, "rb") as stream:
                text = stream.read().decode()
            data = tomllib.loads(text)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", file=file) from None
        except UnicodeDecodeError:
            raise ConfigError("is not UTF-8 text", file=file) from None
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"\(at line (\d+), column \d+\)", str(error))
            reason = re.sub(r"\s*\(at [^)]*\)", "", str(error))
            raise ConfigError(f"not TOML: {reason}", file=file, line=int(found[1]) if found else None) from None
        config = replace(self, file=file, text=text)
        for key, value in data.items():
            if key in LATER_TABLES:
                raise config.error("not supported yet", key)
            if key not in ("vnf", "port", "state"):
                hint = closest(key, ("vnf", "port", "state"))
                raise config.error(f"unknown table: expected vnf, port or state{hint}", key)
            if key == "state":
                config = config._with_state(value)
            elif not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
                raise config.error(f"expected tables such as [{key}.NAME]", key)
        ports: dict[str, PortConfig] = {}
        for name, table in data.get("port", {}).items():
            try:
                ports[name] = port_config(name, table)
            except ConfigError as error:
                raise config.error(error.problem, "port", name, error.key or "type") from None
        for name, table in data.get("vnf", {}).items():
            config._check_vnf(name, table)
        return replace(config, vnfs=MappingProxyType(data.get("vnf", {})), ports=MappingProxyType(ports))

    def _with_state(self, table: object) -> Config:
        if not isinstance(table, dict):
            raise self.error("expected a table: [state]", "state")
        for key in table:
            if key != "url":
                raise self.error(f"unknown key: expected url{closest(key, ('url',))}", "state", key)
        try:
            return replace(self, store=store_url(table["url"])) if "url" in table else self
        except ConfigError as error:
            raise self.error(error.problem, "state", "url") from None

    def _check_vnf(self, name: str, table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if key == "serves":
                try:
                    EndpointURL.parse(str(value))
                except ConfigError as error:
                    raise self.error(error.problem, "vnf", name, key) from None
            if key in LATER_VNF_KEYS:
                raise self.error("not supported yet", "vnf", name, key)
            if key not in ("settings", "limits"):
                known = ("settings", "limits", *LATER_VNF_KEYS)
                wanted = f"expected [vnf.{name}.settings] or [vnf.{name}.limits]"
                raise self.error(f"unknown key: {wanted}{closest(key, known)}", "vnf", name, key)
            if not isinstance(value, dict):
                raise self.error("expected a table", "vnf", name, key)

    def error(self, problem: str, *path: str) -> ConfigError:
        """A mistake at ``path`` of the TOML file."""
        return ConfigError(problem, file=self.file, line=line_of(self.text, path), key=".".join(path))

    def setting(self, vnf: str, key: str, default: T) -> T:
        """The final value, of the type of ``default``. A default that is an endpoint asks for an endpoint."""
        return self._look_up(vnf, "settings", key, key, default)  # type: ignore[no-any-return]

    def limits(self, vnf: str, base: Limits) -> Limits:
        """``base``, changed by the file, the environment and the command line."""
        names = [spec.name for spec in fields(Limits)]
        for key in self.vnfs.get(vnf, {}).get("limits", {}):
            if key not in names:
                hint = closest(key, names)
                raise self.error(f"unknown limit: expected one of {', '.join(names)}{hint}", "vnf", vnf, "limits", key)
        return Limits(**{n: self._look_up(vnf, "limits", n, f"limits.{n}", getattr(base, n)) for n in names})

    def _look_up(self, vnf: str, table: str, key: str, flag: str, default: Any) -> Any:
        variable = re.sub(r"[^A-Z0-9]", "_", f"VNF_{vnf}_{flag}".upper())
        try:
            if flag in self.sets:
                place: dict[str, Any] = {"key": f"--set {flag}"}
                value = found = self.sets[flag]
                value = _convert(found, default)
            elif variable in self.environment:
                place = {"key": variable}
                value = found = self.environment[variable]
                value = _convert(found, default)
            elif key in self.vnfs.get(vnf, {}).get(table, {}):
                path = ("vnf", vnf, table, key)
                place = {"file": self.file, "line": line_of(self.text, path), "key": ".".join(path)}
                value = found = self.vnfs[vnf][table][key]
                value = _same_type(found, default)
            else:
                return default
            if isinstance(default, str) and default.partition("://")[0] in SCHEMES:
                EndpointURL.parse(value)
        except ConfigError as error:
            raise ConfigError(error.problem, **place) from None
        except ValueError as error:
            raise ConfigError(f"{found!r}: {error}", **place) from None
        return value

    def check_known(self, vnf: str, settings: Iterable[str]) -> None:
        """After the VNF's file has been loaded: what was set and nobody asked for is a mistake."""
        known = sorted(settings)
        limits = [f"limits.{spec.name}" for spec in fields(Limits)]
        listed = ", ".join([*known, "limits.*"])
        for key in self.sets:
            if key not in known and key not in limits:
                hint = closest(key, [*known, *limits])
                raise ConfigError(f"{vnf} has no such setting: it knows {listed}{hint}", key=f"--set {key}")
        for key in self.vnfs.get(vnf, {}).get("settings", {}):
            if key not in known:
                hint = closest(key, known)
                wanted = f"{vnf} has no such setting: it knows {', '.join(known) or 'none'}{hint}"
                raise self.error(wanted, "vnf", vnf, "settings", key)
