"""Frames of the virtual Ethernet in a file that Wireshark and tshark read: the classic pcap format, in nanoseconds.

The format is described in draft-ietf-opsawg-pcap. Time 0.0 of the virtual clock is the epoch.
"""

import os
import struct
from types import TracebackType
from typing import Self

__all__ = ["Capture"]

MAGIC_NS, VERSION, SNAP_BYTES, LINKTYPE_ETHERNET = 0xA1B23C4D, (2, 4), 262_144, 1


class Capture:
    """One file, written until it, or the network, is closed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.frames = 0
        """How many have been written."""
        self._file = open(path, "wb")
        self._file.write(struct.pack("!IHHiIII", MAGIC_NS, *VERSION, 0, 0, SNAP_BYTES, LINKTYPE_ETHERNET))

    def write(self, at_s: float, frame: bytes) -> None:
        """One frame, at that virtual time."""
        seconds, nanoseconds = divmod(round(at_s * 1e9), 1_000_000_000)
        self._file.write(struct.pack("!IIII", seconds, nanoseconds, len(frame), len(frame)) + frame)
        self.frames += 1

    @property
    def closed(self) -> bool:
        """Whether nothing more is written."""
        return self._file.closed

    def close(self) -> None:
        """The file is complete. Closing twice does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
