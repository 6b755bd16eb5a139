"""The part of ``libvnf._native`` that is about frames; that module's stub has its names from here."""

from collections.abc import Callable, Iterator
from typing import Any, final

from typing_extensions import Buffer

from ._native import Connection, Engine, Packet

__all__ = ["Batch", "Column", "Frame", "attach_frames"]

@final
class Frame(Packet):
    """A packet below the transport layer: an Ethernet frame, with the fields of its headers and a verdict.

    Fields are those of the frame as it came; ``rewrite`` changes only what leaves. Numbers are 0, and addresses None,
    where the frame has no such field; of fragments only the first has ports. The first verdict counts; a frame that
    dies without one is dropped and counted (``drop_undecided``). Who keeps a frame may decide later.
    """

    @property
    def port(self) -> str:
        """The name of the port it came by."""
    @property
    def src_mac(self) -> str | None: ...
    @property
    def dst_mac(self) -> str | None: ...
    @property
    def ethertype(self) -> int:
        """What follows the tags."""
    @property
    def vlan(self) -> int:
        """The outermost tag's id."""
    @property
    def src_ip(self) -> str | None: ...
    @property
    def dst_ip(self) -> str | None: ...
    @property
    def protocol(self) -> int: ...
    @property
    def ttl(self) -> int:
        """Or hop limit."""
    @property
    def src_port(self) -> int:
        """Of TCP and UDP; of an ICMP echo the identifier is the port of the side that asks."""
    @property
    def dst_port(self) -> int: ...
    @property
    def tcp_flags(self) -> int: ...
    @property
    def teid(self) -> int:
        """Of a GTP-U packet with user data (``is_gtpu``)."""
    @property
    def is_ipv4(self) -> bool: ...
    @property
    def is_ipv6(self) -> bool: ...
    @property
    def is_arp(self) -> bool: ...
    @property
    def is_tcp(self) -> bool: ...
    @property
    def is_udp(self) -> bool: ...
    @property
    def is_icmp(self) -> bool:
        """ICMP or ICMPv6."""
    @property
    def is_fragment(self) -> bool: ...
    @property
    def is_gtpu(self) -> bool: ...
    @property
    def is_malformed(self) -> bool:
        """Headers that contradict themselves, or end before they should."""
    @property
    def payload(self) -> Packet:
        """What is behind the innermost header above, without padding."""
    def drop(self, /) -> None: ...
    def forward(self, port: str, /) -> None:
        """Out of that port as it is; ``ValueError`` when there is none of that name."""
    def reply(self, /) -> None:
        """Out of the port it came by, link addresses exchanged."""
    def accept(self, /) -> None:
        """To the host of the port it came by: ARP, ICMP, TCP, UDP."""
    def rewrite(
        self,
        *,
        src_mac: str = ...,
        dst_mac: str = ...,
        vlan: int = ...,
        src_ip: str = ...,
        dst_ip: str = ...,
        src_port: int = ...,
        dst_port: int = ...,
        ttl: int = ...,
        dscp: int = ...,
    ) -> None:
        """Gives header fields of what leaves new values; checksums follow. ``vlan=0`` takes a tag off. ``ValueError``
        when this frame cannot be rewritten so; then it stays as it was."""
    def again(self, /) -> None:
        """Through the flow table once more; a frame that no flow matches is dropped and counted."""

@final
class Batch:
    """Up to 256 frames of one port, in the order in which they came; over when the handler has returned.

    A column is a read-only array with a value per frame, 0 where a frame has no such field; one that is kept stays what
    it was. Columns and frames tell what came: ``rewrite`` changes only what leaves. A mask is an array of bool, one per
    frame (``TypeError``, ``ValueError`` otherwise); None: all frames. The first verdict counts; frames without one are
    dropped and counted (``drop_undecided``). Verdicts are carried out in order when the handler has returned.
    """

    @property
    def length(self) -> Any:
        """uint32: bytes of the frame"""
    @property
    def ethertype(self) -> Any:
        """uint16: what follows the tags"""
    @property
    def vlan(self) -> Any:
        """uint16: the outermost tag's id"""
    @property
    def protocol(self) -> Any:
        """uint8"""
    @property
    def ttl(self) -> Any:
        """uint8: or hop limit"""
    @property
    def src_ip(self) -> Any:
        """uint32: of IPv4; compares with ``int(ipaddress.ip_address(…))``"""
    @property
    def dst_ip(self) -> Any:
        """uint32"""
    @property
    def src_ip6(self) -> Any:
        """uint8, 16 per frame"""
    @property
    def dst_ip6(self) -> Any:
        """uint8, 16 per frame"""
    @property
    def src_mac(self) -> Any:
        """uint64"""
    @property
    def dst_mac(self) -> Any:
        """uint64"""
    @property
    def src_port(self) -> Any:
        """uint16: of TCP and UDP; of an ICMP echo the identifier is the port of the side that asks"""
    @property
    def dst_port(self) -> Any:
        """uint16"""
    @property
    def tcp_flags(self) -> Any:
        """uint8"""
    @property
    def teid(self) -> Any:
        """uint32: of a GTP-U packet with user data"""
    @property
    def is_ipv4(self) -> Any: ...
    @property
    def is_ipv6(self) -> Any: ...
    @property
    def is_arp(self) -> Any: ...
    @property
    def is_tcp(self) -> Any: ...
    @property
    def is_udp(self) -> Any: ...
    @property
    def is_icmp(self) -> Any: ...
    @property
    def is_fragment(self) -> Any: ...
    @property
    def is_gtpu(self) -> Any: ...
    @property
    def is_malformed(self) -> Any: ...
    @property
    def port(self) -> str:
        """The name of the port they came by."""
    def __len__(self, /) -> int: ...
    def __getitem__(self, index: int, /) -> Frame:
        """One frame, with its bytes. Kept without a verdict, it may be decided after the batch."""
    def __iter__(self, /) -> Iterator[Frame]: ...
    def drop(self, mask: Any = None, /) -> None: ...
    def forward(self, port: str, mask: Any = None, /) -> None:
        """Out of that port as they are; ``ValueError`` when there is none of that name."""
    def reply(self, mask: Any = None, /) -> None:
        """Out of the port they came by, link addresses exchanged."""
    def accept(self, mask: Any = None, /) -> None:
        """To the host of the port: ARP, ICMP, TCP, UDP."""
    def again(self, mask: Any = None, /) -> None:
        """Through the flow table once more; what no flow matches is dropped and counted."""
    def rewrite(
        self,
        mask: Any = None,
        /,
        *,
        src_mac: str = ...,
        dst_mac: str = ...,
        vlan: int = ...,
        src_ip: str = ...,
        dst_ip: str = ...,
        src_port: int = ...,
        dst_port: int = ...,
        ttl: int = ...,
        dscp: int = ...,
    ) -> None:
        """Gives header fields of what leaves new values, of frames that are not decided yet; checksums follow.
        ``vlan=0`` takes a tag off. Frames that cannot be rewritten so are dropped and counted
        (``drop_verdict_failed``)."""
    def send(self, port: str, frame: Buffer, /) -> None:
        """Sends any frame out of a port, at once."""

@final
class Column:
    """The memory of one column of a batch, as NumPy finds it (``__array_interface__``)."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...

def attach_frames(
    engine: Engine, port: str, connection: Connection, batches: Callable[[Batch], Any] | None = None, /
) -> None:
    """From now on the frames of a port are for ``connection``, which stands for the port; many at once for ``batches``.
    ``ValueError`` when there is no such port, or its frames have a handler already."""
