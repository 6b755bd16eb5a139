"""What a wire does to what travels on it: values and dice, without clock and without I/O.

Every flow and direction throws its own dice, seeded by the network's seed and the flow's name, so that one more
connection elsewhere changes nobody's luck. Delays lie on a grid of 2⁻²⁰ s: sums of them are exact.
"""

import random
from dataclasses import dataclass, fields

__all__ = ["STACK_ONLY", "STREAM_ONLY", "Dice", "Faults"]

ANY = "*"  # before a host's name in the place of a server: every name of that host
GRID_S = 2.0**-20
RETRANSMIT_S = 0.2  # the first retransmission of a stream, as Linux' TCP_RTO_MIN; doubles (RFC 6298 §5.5)
RETRANSMISSIONS = 12  # then the stream is given up, after about 14 minutes, as Linux' tcp_retries2 does

STREAM_ONLY = ("split", "breaks", "break_after_bytes", "segment_bytes", "in_flight_bytes")
STACK_ONLY = ("mtu",)
LEAST_MTU, MOST_MTU = 1280, 65535  # RFC 8200 §5; IPv4's total length

_PROBABILITIES = ("loss", "duplicate", "reorder", "corrupt", "split", "breaks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """A wire's properties. Probabilities are per datagram, or per piece of a stream.

    Datagrams: ``loss``, ``duplicate`` (delivered twice), ``reorder`` (held back so that later ones overtake),
    ``corrupt`` (one bit flipped). Streams (``tcp://``, ``unix://``) lose nothing: ``loss`` shows as the delay of a
    retransmission; ``split`` cuts a piece at a random byte, and writes of one loop turn travel as one piece of at most
    ``segment_bytes``, so messages arrive torn and merged; ``breaks`` resets the stream at a piece,
    ``break_after_bytes`` after so many bytes in one direction. ``in_flight_bytes`` is what a stream's direction carries
    unread before its writer is told to pause, and 64 times that is what a flow of datagrams carries before it drops.

    A packet takes ``delay_s`` and up to ``jitter_s`` more, one way.

    On the user-space stack (``stack=True``) the probabilities are per Ethernet frame, whatever it carries, and TCP
    helps itself; what is said of streams above does not apply. ``mtu`` is the largest IP packet that passes (1500).
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    split: float = 0.5
    breaks: float = 0.0
    break_after_bytes: int | None = None
    delay_s: float = 0.001
    jitter_s: float = 0.0
    segment_bytes: int = 1460
    in_flight_bytes: int = 65536
    mtu: int | None = None

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, 0 to 1, not {getattr(self, name)!r}")
        for name in ("delay_s", "jitter_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is in seconds, 0 or more, not {getattr(self, name)!r}")
        for name in ("segment_bytes", "in_flight_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, not {getattr(self, name)!r}")
        if self.mtu is not None and not LEAST_MTU <= self.mtu <= MOST_MTU:
            raise ValueError(f"mtu is {LEAST_MTU} to {MOST_MTU} bytes, not {self.mtu!r}")
        if self.break_after_bytes is not None and self.break_after_bytes < 0:
            raise ValueError(f"break_after_bytes is 0 or more, or None, not {self.break_after_bytes!r}")

    @classmethod
    def names(cls) -> frozenset[str]:
        """What can be set."""
        return frozenset(field.name for field in fields(cls))


class Dice:
    """The luck of one direction of one flow."""

    def __init__(self, seed: int | str, flow: str) -> None:
        self._random = random.Random(f"{seed}/{flow}")

    def happens(self, probability: float) -> bool:
        return probability > 0.0 and self._random.random() < probability

    def delay_s(self, faults: Faults) -> float:
        jitter_s = faults.jitter_s * self._random.random() if faults.jitter_s else 0.0
        return _on_grid(faults.delay_s + jitter_s)

    def datagram(self, data: bytes, faults: Faults, intact: int = 0) -> tuple[str, list[tuple[float, bytes]]]:
        """What becomes of a datagram: a word for the trace, and each copy that arrives, with its delay. The first
        ``intact`` bytes are never corrupted.
        """
        if self.happens(faults.loss):
            return "lost", []
        word = "sent"
        if data and self.happens(faults.corrupt):
            bit = self._random.randrange(intact * 8, len(data) * 8)
            data = data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]
            word = "corrupted"
        delay_s = self.delay_s(faults)
        if self.happens(faults.reorder):
            delay_s += _on_grid((faults.delay_s + faults.jitter_s) * self._random.uniform(0.5, 3.0)) + GRID_S
            word = "held back" if word == "sent" else word
        copies = [(delay_s, data)]
        if self.happens(faults.duplicate):
            copies.append((self.delay_s(faults), data))
            word = "duplicated" if word == "sent" else word
        return word, copies

    def retransmissions_s(self, faults: Faults) -> float | None:
        """How much later a piece of a stream arrives for being lost and sent again; None when it is given up."""
        late_s, wait_s = 0.0, RETRANSMIT_S
        for _ in range(RETRANSMISSIONS):
            if not self.happens(faults.loss):
                return _on_grid(late_s)
            late_s += wait_s
            wait_s *= 2
        return None

    def piece_bytes(self, waiting: int, faults: Faults) -> int:
        """How many of the bytes that wait leave as the next piece."""
        size = min(waiting, faults.segment_bytes)
        return self._random.randint(1, size) if size > 1 and self.happens(faults.split) else size


def _on_grid(seconds: float) -> float:
    return round(seconds / GRID_S) * GRID_S
