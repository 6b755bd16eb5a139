"""What tshark reads of TCP in a capture, and what must hold of every segment in it.

The capture is made at the kernel's end of the bridge: a window that it shows before a segment was told by then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.peers import DEADLINE_S, Namespace, Process, frames_without_fault

FIELDS = "ip.src ipv6.src tcp.stream tcp.flags tcp.seq_raw tcp.ack_raw tcp.len tcp.window_size tcp.options.mss_val"
FIELDS += (
    " tcp.checksum tcp.options.wscale.shift tcp.options.sack_perm tcp.analysis.retransmission tcp.analysis.out_of_order"
)
FIELDS += " tcp.analysis.lost_segment tcp.analysis.ack_lost_segment"
FIN, SYN, RST, ACK = 1, 2, 4, 16
OURS = ("10.0.0.2", "fd00::2")


@dataclass(frozen=True)
class Seen:
    """One segment."""

    ours: bool
    stream: int
    flags: int
    sequence: int
    acknowledgement: int
    length: int
    window: int
    mss: int | None
    scale: int | None
    may_sack: bool
    checksum: int
    faults: tuple[str, ...]


@contextmanager
def captured(process: Callable[..., Process], host: Namespace, capture: Path, device: str = "dtap") -> Iterator[None]:
    """Records all frames of a device; tshark has found no fault with them when this ends."""
    # A buffer of 64 MiB: a capture with holes proves nothing.
    recorder = process(["dumpcap", "-q", "-i", device, "-B", "64", "-w", str(capture)], netns=host.name)
    recorder.wait_for("File: ")
    yield
    # What has passed is not yet recorded on a busy machine: a last datagram tells when it is.
    mark, until = os.urandom(32), time.monotonic() + DEADLINE_S
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.connect((OURS[0], 9))
        while mark not in capture.read_bytes()[-65536:]:
            assert time.monotonic() < until, "the recorder has stopped recording"
            with contextlib.suppress(ConnectionRefusedError, TimeoutError):
                sock.send(mark)
                sock.recv(1)
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait() == 0
    assert frames_without_fault(capture) > 0


def segments(capture: Path) -> list[Seen]:
    names = FIELDS.split()
    command = ["tshark", "-n", "-r", str(capture), "-Y", "tcp && !icmp && !icmpv6", "-Tfields"]
    command += [word for name in names for word in ("-e", name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=True)
    seen = []
    for line in done.stdout.splitlines():
        row = dict(zip(names, line.split("\t"), strict=True))
        seen.append(
            Seen(
                (row["ip.src"] or row["ipv6.src"]) in OURS,
                int(row["tcp.stream"]),
                int(row["tcp.flags"], 16),
                int(row["tcp.seq_raw"]),
                int(row["tcp.ack_raw"]),
                int(row["tcp.len"]),
                int(row["tcp.window_size"]),
                int(row["tcp.options.mss_val"]) if row["tcp.options.mss_val"] else None,
                int(row["tcp.options.wscale.shift"]) if row["tcp.options.wscale.shift"] else None,
                bool(row["tcp.options.sack_perm"]),
                int(row["tcp.checksum"], 16),
                tuple(name.rpartition(".")[2] for name in names[-4:] if row[name]),
            )
        )
    return seen


def sane(seen: list[Seen], *, mss_ours: int, mss_theirs: int) -> Counter[str]:
    """Handshakes offer what they should, no segment is longer than its receiver takes or beyond its window, and none is
    a reset before both sides have ended. What tshark's analysis remarks on our segments and theirs, by name.
    """
    edges: dict[tuple[int, bool], int] = {}  # where the window ends that this side has told
    ended: set[tuple[int, bool]] = set()
    remarks: Counter[str] = Counter()
    for one in seen:
        if one.flags & FIN:
            ended.add((one.stream, one.ours))
        # A Linux that has forgotten the connection answers a late acknowledgement so.
        is_late = {(one.stream, True), (one.stream, False)} <= ended
        assert not one.flags & RST or (is_late and not one.ours), one
        assert not (one.ours and one.checksum == 0xFFFF), one
        remarks.update(f"{'our' if one.ours else 'their'} {fault}" for fault in one.faults)
        if one.flags & SYN:
            assert one.mss == (mss_ours if one.ours else mss_theirs), one
            assert one.scale is not None and one.may_sack, one
        if one.flags & ACK:
            edge = one.acknowledgement + one.window
            told = edges.get((one.stream, one.ours))
            if told is None or _after(edge, told):
                edges[one.stream, one.ours] = edge & 0xFFFFFFFF
        if one.length:
            assert one.length <= min(mss_ours, mss_theirs), one
            assert not _after(one.sequence + one.length, edges[one.stream, not one.ours]), one
    return remarks


def _after(a: int, b: int) -> bool:
    """On the circle of sequence numbers."""
    return 0 < (a - b) & 0xFFFFFFFF < 1 << 31
