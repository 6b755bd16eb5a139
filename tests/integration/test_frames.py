"""Handlers of frames between two memif ports, in one process with the generator, and as `vnf run` starts them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.all import ARP, ICMP, IP, UDP, Ether

from libvnf import VNF, _native
from libvnf.config import parse_transport
from tests.integration.memif import Client
from tests.integration.programs import running

FRAME = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP() / UDP(sport=7, dport=8) / bytes(32))


@asynccontextmanager
async def between(tmp_path: Path, vnf: VNF) -> AsyncIterator[Callable[..., Any]]:
    """``vnf`` runs on two ports; what is yielded sends frames into the first and counts what the second lets out."""
    ports = [f"memif:{tmp_path}/{end}.sock,address=10.{number}.0.2/24" for number, end in enumerate("ab")]
    await vnf.start([parse_transport(port, {}, number) for number, port in enumerate(ports)])

    async def generate(**options: Any) -> dict[str, Any]:
        clients = [f"memif:{tmp_path}/{end}.sock,role=client" for end in "ab"]
        options = {"ports": clients, "frame": FRAME, "duration_s": 0.3, "warmup_s": 0.0, "rate": 50_000.0, **options}
        return await asyncio.to_thread(_native.generate_frames, options, lambda progress: False)

    try:
        yield generate
    finally:
        await vnf.close()


def slots_in_use(vnf: VNF) -> int:
    return sum(row["slots"] - row["free"] for row in vnf.statistics()["pool"].values())


def batches(vnf: VNF) -> None:
    @vnf.frames("port0")
    def forward(batch: Any) -> None:
        batch.forward("port1", batch.is_udp & (batch.dst_port == 8))


def taking_frames_out(vnf: VNF) -> None:
    @vnf.frames("port0")
    def forward(batch: Any) -> None:
        for frame in batch:
            frame.forward("port1")


def one_by_one(vnf: VNF) -> None:
    @vnf.frames("port0", per_packet=True)
    def forward(port: Any, request: Any, packet: Any) -> None:
        packet.forward("port1")


def without_waiting(vnf: VNF) -> None:
    @vnf.frames("port0", per_packet=True)
    async def forward(port: Any, request: Any, packet: Any) -> None:
        packet.forward("port1")


def waiting_by_id(vnf: VNF) -> None:
    @vnf.frames("port0", per_packet=True, request_id=lambda packet: packet.src_ip)
    async def forward(port: Any, request: Any, packet: Any) -> None:
        await asyncio.sleep(0)
        packet.forward("port1")


def touching_the_request(vnf: VNF) -> None:
    @vnf.frames("port0", per_packet=True)
    def forward(port: Any, request: Any, packet: Any) -> None:
        request.seen = True
        packet.forward("port1")


SHAPES = [batches, taking_frames_out, one_by_one, without_waiting, waiting_by_id, touching_the_request]


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_frame_passes_or_is_counted_and_nothing_is_left(
    tmp_path: Path, shape: Callable[[VNF], None]
) -> None:
    vnf = VNF("f", program=False)
    shape(vnf)
    async with between(tmp_path, vnf) as generate:
        await generate()
        before = slots_in_use(vnf)
        report = await generate(flows=8)
        core, ports = vnf.statistics()["core"], vnf.statistics()["transports"]
        lost = core["drop_queue_full"] + core["drop_kept_quota"] + ports["port1"]["counters"]["tx_full"]
        assert report["received"] > 0
        assert report["sent"] - report["received"] <= lost
        assert core["drop_undecided"] + core["handler_errors"] + core["drop_verdict"] == 0
        assert core["requests_open"] == 0
        # Some buffers wait for the next frames.
        assert slots_in_use(vnf) <= max(before, 64 + 1)
        assert core["kept_bytes"] == 0


async def test_a_vnf_of_frames_is_collected_whatever_refers_to_what(tmp_path: Path) -> None:
    kept: list[Any] = []

    def make() -> weakref.ref[Any]:
        vnf = VNF("f", program=False)

        @vnf.frames("port0", per_packet=True)
        def handler(port: Any, request: Any, packet: Any) -> None:
            port.state = (packet, port, vnf)

        @vnf.frames("port1")
        def batches(batch: Any) -> None:
            kept.append((batch, batch.length, batch[0], vnf))

        kept.append(vnf)
        return weakref.ref(vnf)

    gone = make()
    async with between(tmp_path, kept[0]) as generate:
        await generate()
    engines = [weakref.ref(one._driver.engine) for one in kept[0]._transports]
    kept.clear()
    await asyncio.sleep(0)
    gc.collect()
    gc.collect()
    assert gone() is None
    assert [engine() for engine in engines] == [None, None]


PAPERS = """
from libvnf.api import *

def seen(connID, request, packet):
    if packet.is_arp or packet.is_icmp:
        packet.accept()
    else:
        sendData(connID, packet[6:12] + packet[0:6] + packet[12:])

server = createServer("data0", None, None, None)
registerCallback(server, "read", seen)
startEventLoop()
"""


def test_the_papers_null_address_serves_a_whole_interface(tmp_path: Path) -> None:
    port = f"memif:{tmp_path}/m.sock,name=data0,address=10.0.0.2/24,mac=02:00:00:00:00:02"
    with running(tmp_path, PAPERS, "--transport", port), Client(tmp_path / "m.sock").connect() as peer:
        peer.send(FRAME)
        while Ether(back := peer.receive()).type != 0x800:
            pass  # the port announces its address
        assert back == FRAME[6:12] + FRAME[:6] + FRAME[12:]
        link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        peer.send(bytes(link / ARP(hwsrc=link.src, psrc="10.0.0.1", pdst="10.0.0.2")))
        assert Ether(peer.receive())[ARP].hwsrc == link.dst
        peer.send(bytes(link / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(id=5)))
        assert Ether(peer.receive())[ICMP].type == 0
