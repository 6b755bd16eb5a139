"""Where a store is, as one line: ``memory://``, ``redis+embedded://[DIR]``, ``redis://``, ``redis-cluster://h:p,h:p``.

    scheme://[user[:password]@]host[:port][,host:port…][/][?key=value&…]

``rediss`` and ``rediss-cluster`` are the same over TLS. User and password are percent-encoded where they must be. A
password is never shown: not by ``str``, not by ``repr``, not in an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from ..config import STORES, closest, join_host
from ..errors import ConfigError

__all__ = ["PORT", "StoreURL"]

PORT = 6379
KEYS = ("ns", "tls_ca", "tls_cert", "tls_key")
NODE = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?"
EMBEDDED = "vnf-store"
"""Where an embedded store is when no directory is named: below the working directory, where it can be seen."""


@dataclass(frozen=True, slots=True)
class StoreURL:
    """A store's place. ``parse`` is the way in; :class:`ConfigError` says what is wrong, without the password."""

    scheme: str
    nodes: tuple[tuple[str, int], ...] = ()
    """Host and port. Of a cluster any of its nodes: the others are learnt from them."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    namespace: str = "vnf"
    """The first part of every key: programs that shall not see each other's tables use different ones."""
    directory: str = ""
    tls_ca: str | None = None
    """A file of authorities, PEM; None: the system's."""
    tls_cert: str | None = None
    """With ``tls_key``: what this side shows, PEM."""
    tls_key: str | None = None

    @property
    def shared(self) -> bool:
        """Other processes can have it open, too."""
        return self.scheme != "memory"

    @property
    def cluster(self) -> bool:
        return self.scheme.endswith("-cluster")

    @property
    def tls(self) -> bool:
        return self.scheme.startswith("rediss")

    @classmethod
    def parse(cls, text: str) -> StoreURL:
        scheme, found, rest = text.partition("://")
        if not found or scheme not in STORES:
            # Whatever it is, a password may be in it.
            shown = f"{scheme}://…" if found else "what was given"
            raise ConfigError(
                f"{shown!r} is not a store: expected one of {', '.join(STORES.values())}{closest(scheme, STORES, '{}://')}"
            )
        rest, _, query = rest.partition("?")
        if "@" in query:
            raise ConfigError(f"{scheme}://…: write '?' in a password as %3F, '@' in an option as %40")
        login, at, place = rest.rpartition("@") if scheme != "redis+embedded" else ("", "", rest)
        # What is no list of nodes may be a password whose host was forgotten.
        told = place if scheme == "redis+embedded" or re.fullmatch(rf"{NODE}(,{NODE})*/?\d*", place) else "…"
        shown = f"{scheme}://{'…@' if at else ''}{told}"
        user, colon, password = login.partition(":")
        options = _options(query, shown, tls=scheme.startswith("rediss"), scheme=scheme)
        if scheme == "memory":
            if place or at:
                raise ConfigError(f"{shown!r}: memory:// has no place: nobody else can have it")
            return cls(scheme)
        if scheme == "redis+embedded":
            return cls(scheme, directory=unquote(place) or EMBEDDED, **options)
        place, slash, database = place.partition("/")
        if slash and database not in ("", "0"):
            raise ConfigError(f"{shown!r}: tables are in database 0, as in a cluster; ?ns=NAME keeps programs apart")
        nodes = tuple(_node(item, shown) for item in place.split(","))
        if len(nodes) > 1 and not scheme.endswith("-cluster"):
            raise ConfigError(f"{shown!r} names several nodes: expected {scheme}-cluster://…")
        if at and not colon:
            raise ConfigError(f"{shown!r}: a user without a password: expected {scheme}://USER:PASSWORD@…")
        return cls(scheme, nodes, unquote(user) or None, unquote(password) if at else None, **options)

    def __str__(self) -> str:
        if not self.nodes:
            return f"{self.scheme}://{self.directory}"
        login = f"{self.username or ''}:…@" if self.password is not None else ""
        return f"{self.scheme}://{login}{','.join(join_host(*node) for node in self.nodes)}"


def _options(query: str, shown: str, *, tls: bool, scheme: str) -> dict[str, Any]:
    options: dict[str, str] = {}
    for item in query.split("&") if query else ():
        key, equals, value = item.partition("=")
        if key not in KEYS or not equals or not value or scheme == "memory":
            known = ", ".join(f"{name}=…" for name in KEYS)
            raise ConfigError(f"{shown}?{key}=: expected {known}{closest(key, KEYS)}")
        if key.startswith("tls") and not tls:
            raise ConfigError(f"{shown}?{key}=: {scheme}:// is without TLS: use {scheme.replace('redis', 'rediss')}://")
        options["namespace" if key == "ns" else key] = unquote(value)
    # It is inside the braces of every key, which a cluster's nodes are chosen by.
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", options.get("namespace", "vnf")):
        raise ConfigError(f"{shown}?ns={options['namespace']}: expected up to 64 letters, digits, '.', '_' and '-'")
    if ("tls_cert" in options) != ("tls_key" in options):
        raise ConfigError(f"{shown}: tls_cert and tls_key come together")
    return options


def _node(text: str, shown: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if re.search(r":\d+$", text) else (text, ":", str(PORT))
    if not re.fullmatch(NODE, text) or not 0 < int(port) < 65536:
        raise ConfigError(f"{shown!r}: expected HOST:PORT; an IPv6 address is written in brackets")
    return host.strip("[]"), int(port)
