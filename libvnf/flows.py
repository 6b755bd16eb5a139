"""``vnf.flows``: the rules of a VNF, in the native table; until it runs, kept for its start.

Packets that a rule matches are not seen by Python. A rule takes effect between two packets, and so does its end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from . import _native
from .errors import ConfigError, FlowsFull
from .flow import Action, Match, Statistics, checked, port_names
from .handlers import check_arity

if TYPE_CHECKING:
    from .vnf import VNF

__all__ = ["Flows"]

F = TypeVar("F", bound=Callable[..., Any])
PAGE = 1024
LONGEST_S = 1e9


class Flows:
    """Installs, removes and lists rules; ``len()`` of it, ``match in`` it, and iteration over the matches."""

    def __init__(self, vnf: VNF) -> None:
        self._vnf = vnf
        self._table: _native.FlowTable | None = None
        self._early: dict[Match, tuple[tuple[Action, ...], float | None, float | None]] = {}
        self._handlers: list[Callable[..., Any]] = []

    def install(
        self,
        match: Match,
        actions: Action | Iterable[Action],
        *,
        idle_s: float | None = None,
        hard_s: float | None = None,
    ) -> bool:
        """Packets like ``match`` get ``actions`` from now on; True when this replaced the rule of an equal match.

        The rule ends after ``idle_s`` seconds without a packet, and ``hard_s`` after it was installed. ``ConfigError``
        for a rule that cannot be, ``FlowsFull`` over ``limits.max_flows``.
        """
        steps = checked(match, actions)
        timeouts = (_timeout("idle_s", idle_s), _timeout("hard_s", hard_s))
        if self._table is not None:
            return self._install(match, steps, *timeouts)
        if self._vnf.closed:
            raise RuntimeError(f"{self._vnf.name} has run: no rule can be installed any more")
        for name in port_names(match, steps):
            self._vnf.check_port(name)
        replaced = match in self._early
        self._early[match] = (steps, *timeouts)
        return replaced

    def _install(self, match: Match, steps: tuple[Action, ...], idle_s: float | None, hard_s: float | None) -> bool:
        assert self._table is not None
        try:
            return self._table.install(match, steps, idle_s=idle_s, hard_s=hard_s)
        except OverflowError as error:
            raise FlowsFull(f"{match}: {error}: limits.max_flows is {self._vnf.limits.max_flows}") from None
        except ValueError as error:
            raise ConfigError(f"{match}: {error}") from None

    def remove(self, match: Match) -> Statistics | None:
        """The rule's last figures; None when there was none. ``on_expire`` is not told."""
        if self._table is None:
            return None if self._early.pop(match, None) is None else Statistics(0, 0, 0, 0, 0.0)
        return self._read(self._table.remove, match)

    def statistics(self, match: Match) -> Statistics | None:
        """The rule's figures; None when there is none."""
        if self._table is None:
            return Statistics(0, 0, 0, 0, 0.0) if match in self._early else None
        return self._read(self._table.statistics, match)

    def _read(self, ask: Callable[[Match], tuple[int, int, int, int, float] | None], match: Match) -> Statistics | None:
        if not isinstance(match, Match):
            raise ConfigError(f"{match!r} is not a Match")
        try:
            figures = ask(match)
        except ValueError as error:
            raise ConfigError(f"{match}: {error}") from None
        return None if figures is None else Statistics(*figures)

    def on_expire(self, fn: F) -> F:
        """``fn(match, reason, statistics)``, ``def`` or ``async def``, when a rule ended: ``"idle"`` or ``"hard"``."""
        check_arity(fn, ("match", "reason", "statistics"))
        self._handlers.append(fn)
        if self._table is not None:
            self._table.on_ended(self._ended)
        return fn

    def __len__(self) -> int:
        return len(self._early) if self._table is None else len(self._table)

    def __contains__(self, match: object) -> bool:
        return isinstance(match, Match) and self.statistics(match) is not None

    def __iter__(self) -> Iterator[Match]:
        """In no order. Rules that stay are met once, whatever is installed or removed meanwhile."""
        if self._table is None:
            yield from list(self._early)
            return
        start: int | None = 0
        while start is not None and self._table is not None:
            rows, start = self._table.page(start, PAGE)
            for row in rows:
                yield Match(*row)

    # --- its life, in the hands of the VNF ---------------------------------------------------------------------------

    def start(self, engine: _native.Engine | None) -> None:
        """Installs what was asked for before. ``ConfigError`` where there is no port for it."""
        if engine is None:
            if self._early:
                rule = next(iter(self._early))
                raise ConfigError(f"{rule}: kernel sockets have no frames: expected a port such as --transport memif:…")
            return
        self._table = _native.FlowTable(engine)
        if self._handlers:
            self._table.on_ended(self._ended)
        for match, (steps, idle_s, hard_s) in self._early.items():
            self._install(match, steps, idle_s, hard_s)
        self._early.clear()

    def close(self) -> None:
        """The rules go with the ports."""
        if self._table is not None:
            self._table.on_ended(None)
        self._table = None

    def counters(self) -> Mapping[str, int]:
        """Of the table."""
        return {} if self._table is None else self._table.counters()

    def _ended(self, rows: list[tuple[Any, str, tuple[int, int, int, int, float]]]) -> None:
        """Called natively, with a few at once."""
        for fields, reason, figures in rows:
            match, statistics = Match(*fields), Statistics(*figures)
            for fn in self._handlers:
                try:
                    waits = fn(match, reason, statistics)
                    if inspect.iscoroutine(waits):
                        self._vnf.spawn(waits)
                except Exception as error:
                    self._vnf.failed(None, None, error)


def _timeout(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.001 <= value <= LONGEST_S:
        raise ConfigError(f"{value!r}: expected seconds, from 0.001 on", key=name)
    return float(value)
