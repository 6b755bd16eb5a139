"""The user-space stack under test: TCP and UDP on a virtual Ethernet that loses, doubles, holds back and corrupts."""

import asyncio
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libvnf import VNF, ConfigError, Fixed, Unsupported
from libvnf.testing import LeakError, Network

EVIL = {"loss": 0.05, "duplicate": 0.05, "reorder": 0.05, "corrupt": 0.02, "jitter_s": 0.002}
runs = settings(max_examples=max(20, settings().max_examples // 10), deadline=None)
both_families = pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])


def echo(url="tcp://:5000", framing=None, name="b"):
    vnf = VNF(name)

    @vnf.server(url, framing=framing)
    def on_data(conn, request, packet):
        conn.send(packet)

    return vnf


def asks(name="b", c="tcp://c:5000"):
    """The papers' B: asks C, answers A."""
    vnf = VNF(name)
    c = vnf.setting("c", default=c)

    @vnf.server("tcp://:5000", framing=Fixed(4))
    async def on_request(a, request, packet):
        async with a.connect(c, framing=Fixed(4)) as peer:
            reply = await peer.ask(packet)
        a.send(reply)

    return vnf


def numbered(count):
    return b"".join(b"%07d\n" % number for number in range(count))


async def all_of(conn, size):
    got = bytearray()
    while len(got) < size:
        got += await conn.receive()
    return bytes(got)


def tshark(capture, *args):
    command = ["tshark", "-n", "-r", str(capture), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


# --- faults on the wire -----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), ipv6=st.booleans())
@runs
def test_tcp_brings_every_byte_in_order_over_an_evil_wire(seed, ipv6):
    async def main():
        async with echo().test(seed=seed, stack=True, ipv6=ipv6, **EVIL) as net:
            a = await net.connect("tcp://b:5000")
            sent = numbered(5_000)
            for at in range(0, len(sent), 4_000):
                a.send(sent[at : at + 4_000])
                await a.drain()
            assert await all_of(a, len(sent)) == sent
            a.end()
            assert await a.receive() == b""
            assert net.statistics()["network"].keys() & {"lost", "held_back", "duplicated", "corrupted"}

    asyncio.run(main())


@given(seed=st.integers(0, 2**32))
@runs
def test_a_corrupted_datagram_is_dropped_and_counted_never_delivered(seed):
    async def main():
        seen = []
        async with Network(seed=seed, stack=True, corrupt=0.2) as net:
            b = VNF("b")
            b.server("udp://:1")(lambda conn, request, packet: seen.append(bytes(packet)))
            await net.start(b)
            a = await net.connect("udp://b:1")
            for number in range(40):
                a.send(b"%04d" % number * 100)
                await net.run_for(0.01)
            await net.run_for(10)
            assert seen == sorted(seen)
            assert all(message == message[:4] * 100 for message in seen)
            heard, happened = b.statistics()["transports"]["port0"]["counters"], net.statistics()["network"]
            dropped = sum(count for name, count in heard.items() if name.startswith("drop_"))
            assert len(seen) == 40 or dropped or "lost" in happened  # what asks for a link address may be lost

    asyncio.run(main())


@pytest.mark.needs("tshark")
@both_families
def test_tshark_sees_retransmissions_and_nothing_wrong_in_a_capture(ipv6, tmp_path, tshark_check):
    async def main():
        async with echo().test(seed=2, stack=True, ipv6=ipv6, loss=0.05, reorder=0.05, duplicate=0.05) as net:
            net.capture(tmp_path / "sent.pcap")
            with net.capture(tmp_path / "arrived.pcap", arriving=True) as arrived:
                a = await net.connect("tcp://b:5000")
                a.send(numbered(10_000))
                assert await all_of(a, 80_000) == numbered(10_000)
            return net.statistics()["network"], arrived.frames

    happened, arrived = asyncio.run(main())
    assert tshark_check(tmp_path / "sent.pcap") > 100
    assert tshark_check(tmp_path / "arrived.pcap") == arrived > 100
    assert tshark(tmp_path / "sent.pcap", "-Y", "tcp.analysis.retransmission || tcp.analysis.fast_retransmission")
    assert tshark(tmp_path / "arrived.pcap", "-Y", "tcp.analysis.out_of_order || tcp.analysis.retransmission")
    assert happened["lost"] > 0


@pytest.mark.needs("tshark")
def test_a_capture_of_arrivals_shows_what_corruption_did(tmp_path):
    async def main():
        async with echo().test(seed=1, stack=True, corrupt=0.2) as net:
            net.capture(tmp_path / "arrived.pcap", arriving=True)
            a = await net.connect("tcp://b:5000")
            a.send(numbered(2_000))
            assert await all_of(a, 16_000) == numbered(2_000)

    asyncio.run(main())
    checks = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "tcp")]
    assert tshark(tmp_path / "arrived.pcap", *checks, "-Y", 'tcp.checksum.status == "Bad"')


@both_families
@pytest.mark.parametrize("size", [1, 1472, 1473, 8000, 65_507 - 20])
def test_datagrams_of_every_size_pass_in_fragments(ipv6, size):
    async def main():
        async with echo("udp://:5000").test(stack=True, ipv6=ipv6, reorder=0.3, duplicate=0.3) as net:
            a = await net.connect("udp://b:5000")
            message = bytes(range(256)) * (size // 256 + 1)
            assert await a.ask(message[:size]) == message[:size]

    asyncio.run(main())


# --- MTU --------------------------------------------------------------------------------------------------------------


@both_families
def test_a_narrow_wire_says_too_big_and_is_believed(ipv6, tmp_path):
    async def main():
        async with Network(stack=True, ipv6=ipv6) as net:
            await net.start(echo())
            await net.start(echo("udp://:5000", name="d"))
            for host in ("b", "d"):
                net.wire("test", host, mtu=1300)
            a = await net.connect("tcp://b:5000")
            a.send(numbered(10_000))
            assert await all_of(a, 80_000) == numbered(10_000)
            assert net.statistics()["network"]["too_long"] > 0
            d = await net.connect("udp://d:5000")
            for _ in range(2):  # to learn, each way; what is too long is gone
                d.send(bytes(1400))
                await net.run_for(1)
            assert await d.ask(bytes(1400)) == bytes(1400)

    asyncio.run(main())


def test_the_networks_mtu_is_that_of_every_host(tmp_path):
    async def main():
        async with echo().test(stack=True, mtu=1280) as net:
            a = await net.connect("tcp://b:5000")
            a.send(numbered(1_000))
            assert await all_of(a, 8_000) == numbered(1_000)
            assert max(event.size for event in net.trace) == 1280 + 14
            assert "too_long" not in net.statistics()["network"]

    asyncio.run(main())


# --- partitions, cuts, ends -------------------------------------------------------------------------------------------


def test_an_established_connection_outlives_a_partition():
    async def main():
        async with echo().test(seed=4, stack=True) as net:
            a = await net.connect("tcp://b:5000")
            assert await a.ask(b"before") == b"before"
            net.partition("test", "b")
            a.send(b"during")
            await net.run_for(10)
            net.heal()
            assert await a.receive(timeout_s=30) == b"during"
            assert net.statistics()["network"]["severed"] >= 3

    asyncio.run(main())


def test_both_ends_recover_whose_acknowledgements_were_lost():
    """Both have been heard, and neither knows: each sends again from further back, and must still be believed."""
    vnf = VNF("b")

    @vnf.session("tcp://:5000")
    async def pour(conn):
        await conn.receive(size=4)
        conn.send(numbered(2_000))
        assert await all_of(conn, 16_000) == numbered(2_000)
        conn.send(b"done")

    async def main():
        async with vnf.test(stack=True, delay_s=0.02) as net:
            a = await net.connect("tcp://b:5000")
            a.send(b"pour")
            await net.run_for(0.02)
            a.send(numbered(2_000))
            await net.run_for(0.03)
            net.partition("test", "b")
            await net.run_for(3)
            net.heal()
            async with asyncio.timeout(60):
                assert await all_of(a, 16_004) == numbered(2_000) + b"done"

    asyncio.run(main())


def test_a_peer_that_vanishes_is_given_up_within_the_user_timeout():
    async def main():
        async with echo().test(stack=True) as net:
            a = await net.connect("tcp://b:5000")
            assert await a.ask(b"x") == b"x"
            net.partition("b")
            begun = net.clock.now
            a.send(b"y")
            with pytest.raises(ConnectionError):
                await a.receive()
            assert a.close_reason
            assert 20 < net.clock.now - begun < 40

    asyncio.run(main())


@both_families
def test_connecting_into_a_partition_fails_in_time_with_the_reason(ipv6):
    async def main():
        async with echo().test(stack=True, ipv6=ipv6) as net:
            net.partition("b")
            with pytest.raises(OSError, match="No route to host"):  # nobody answers ARP, or NDP
                await net.connect("tcp://b:5000")
            assert net.clock.now == pytest.approx(3, abs=0.1)
            net.heal()
            await net.connect("tcp://b:5000")
            net.partition("b")
            with pytest.raises(OSError, match="not connected within 5 s"):
                await net.connect("tcp://b:5000")
            assert net.clock.now == pytest.approx(3 + 5, abs=0.1)

    asyncio.run(main())


def test_an_idle_connection_outlasts_a_day():
    async def main():
        async with echo().test(stack=True) as net:
            a = await net.connect("tcp://b:5000")
            await net.run_for(86_400)
            assert await a.ask(b"still there") == b"still there"

    asyncio.run(main())


def test_a_played_server_that_closes_refuses_and_serves_on():
    async def main():
        async with Network(stack=True) as net:
            one, other = [
                await net.serve(f"tcp://c:{number}", lambda conn, request, packet: conn.send(packet))
                for number in (1, 2)
            ]
            a = await net.connect("tcp://c:1")
            assert await a.ask(b"x") == b"x"
            one.close()
            with pytest.raises(ConnectionRefusedError):
                await net.connect("tcp://c:1")
            assert await a.ask(b"still") == b"still"
            assert await (await net.connect("tcp://c:2")).ask(b"y") == b"y"
            assert (one.open_connections, other.open_connections) == (1, 1)

    asyncio.run(main())


@both_families
@pytest.mark.parametrize("seed", range(5))
def test_a_cut_resets_both_ends_and_leaves_the_others_alone(ipv6, seed):
    async def main():
        ended = []
        b = echo()
        b._servers[0].on_close(lambda conn, request, reason: ended.append(reason))
        async with Network(b, echo(name="d"), seed=seed, stack=True, ipv6=ipv6, jitter_s=0.01) as net:
            a, d = await net.connect("tcp://b:5000"), await net.connect("tcp://d:5000")
            a.send(numbered(seed * 5_000))
            await net.run_for(0.02)
            assert (net.cut("test", "b"), net.cut("test", "b")) == (1, 0)
            with pytest.raises(ConnectionError):
                await all_of(a, 10**9)
            await net.run_for(60)
            assert len(ended) == 1 and "reset" in ended[0]
            assert "reset" in (a.close_reason or "")
            assert await d.ask(b"x") == b"x"
            assert await (await net.connect("tcp://b:5000")).ask(b"again") == b"again"

    asyncio.run(main())


@both_families
def test_a_half_closed_connection_still_carries_the_answer(ipv6):
    vnf = VNF("b")

    @vnf.session("tcp://:5000")
    async def count(conn):
        total = 0
        async for piece in conn:
            total += len(piece)
        await asyncio.sleep(100)
        conn.send(b"%d" % total)

    async def main():
        async with vnf.test(stack=True, ipv6=ipv6, **EVIL) as net:
            a = await net.connect("tcp://b:5000")
            a.send(bytes(300_000))
            a.end()
            assert await a.receive() == b"300000"
            assert await a.receive() == b""

    asyncio.run(main())


def test_a_vnf_that_closes_resets_its_connections():
    async def main():
        async with Network(stack=True) as net:
            b = await net.start(echo())
            a = await net.connect("tcp://b:5000")
            assert await a.ask(b"x") == b"x"
            await b.close()
            with pytest.raises(ConnectionError):
                await a.receive()
            assert "reset" in (a.close_reason or "")
            with pytest.raises(OSError, match=r"No route to host|not connected"):
                await net.connect("tcp://b:5000")

    asyncio.run(main())


# --- names and addresses ----------------------------------------------------------------------------------------------


@both_families
@pytest.mark.parametrize("c", ["tcp://c:5000", "tcp://10.0.0.3:5000", "tcp://[2001:db8::3]:5000"])
def test_a_chain_of_two_vnfs_meets_by_names_and_by_addresses(ipv6, c):
    async def main():
        async with Network(seed=1, stack=True, ipv6=ipv6, **EVIL) as net:
            await net.start(lambda: echo("tcp://:5000" if "//c" in c else c, Fixed(4), "c"))
            await net.start(lambda: asks(c=c))
            a = await net.connect("tcp://b:5000")
            for number in range(10):
                assert await a.ask(b"%04d" % number, timeout_s=60) == b"%04d" % number

    asyncio.run(main())


def test_a_vnf_is_reached_at_every_address_it_listens_on():
    async def main():
        b = echo("udp://10.0.0.2:53")
        b.server("udp://:54")(lambda conn, request, packet: conn.send(packet))
        async with Network(b, stack=True) as net:
            for url in ("udp://10.0.0.2:53", "udp://10.0.0.2:54", "udp://b:54", "udp://10.77.0.1:54"):
                assert await (await net.connect(url)).ask(b"x") == b"x", url
            silent = await net.connect("udp://b:53")
            silent.send(b"x")
            await net.run_for(1)
            assert silent.closed

    asyncio.run(main())


@pytest.mark.parametrize("name", ["b", "10.77.0.1", "10.0.0.2", "fd77::1"])
def test_partitions_and_wires_know_a_host_by_its_addresses_too(name):
    async def main():
        async with Network(echo("udp://10.0.0.2:53"), stack=True) as net:
            a = await net.connect("udp://10.0.0.2:53")
            assert await a.ask(b"x") == b"x"
            net.partition(name, "test")
            a.send(b"y")
            await net.run_for(1)
            net.heal(name)
            net.wire("test", name, loss=1.0)
            a.send(b"z")
            await net.run_for(1)
            happened = net.statistics()["network"]
            assert (happened["severed"], happened["lost"]) == (1, 1)

    asyncio.run(main())


@pytest.mark.parametrize("url", ["tcp://c:5000", "tcp://10.0.0.3:5000"])
def test_a_host_that_comes_later_takes_its_place(url):
    async def main():
        async with Network(stack=True) as net:
            with pytest.raises(ConnectionRefusedError):
                await net.connect(url)
            await net.start(echo(url, name="c"))
            assert await (await net.connect(url)).ask(b"x") == b"x"

    asyncio.run(main())


def test_an_address_belongs_to_one_host():
    async def main():
        async with Network(echo("udp://10.0.0.2:53"), stack=True) as net:
            with pytest.raises(Exception, match=r"10\.0\.0\.2 is an address of host 'b' already"):
                await net.start(echo("udp://10.0.0.2:54", name="c"))
            await net.serve("udp://10.0.0.9:1", lambda conn, request, packet: None)
            with pytest.raises(ConfigError, match=r"host '10\.0\.0\.9' is the test's already"):
                await net.start(echo(name="d"), host="10.0.0.9")

    asyncio.run(main())


def test_a_host_does_not_reach_itself_over_its_port():
    async def main():
        async with Network(echo(), stack=True) as net:
            with pytest.raises(Unsupported, match="this one"):
                await net.serve("tcp://:1", lambda conn, request, packet: None)
                await net.connect("tcp://test:1")

    asyncio.run(main())


# --- the same again ---------------------------------------------------------------------------------------------------


def conversation(seed, path):
    async def main():
        async with Network(seed=seed, stack=True, **EVIL) as net:
            net.capture(path)
            await net.start(lambda: echo(framing=Fixed(4), name="c"))
            await net.start(lambda: echo("udp://:1", name="d"))
            await net.start(asks)
            for number in range(20):
                a = await net.connect("tcp://b:5000")
                assert await a.ask(b"%04d" % number, timeout_s=60) == b"%04d" % number
                a.close()
            d = await net.connect("udp://d:1", host="other")
            for _ in range(10):
                d.send(bytes(5_000))
            net.partition("other")
            await net.run_for(5)
            net.heal()
            await net.run_for(5)
            return net.trace, dict(net.statistics()["network"]), net.clock.now

    return asyncio.run(main())


def test_the_seed_determines_every_byte_of_every_frame(tmp_path):
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    assert conversation(7, first) == conversation(7, second)
    assert first.read_bytes() == second.read_bytes()
    conversation(8, other)
    assert other.read_bytes() != first.read_bytes()


# --- what is refused, and what is left --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"split": 0.5, "stack": True}, "'split' is of modelled streams"),
        ({"breaks": 0.5, "stack": True}, "'breaks' is of modelled streams"),
        ({"mtu": 1400}, "'mtu' goes with stack=True"),
        ({"ipv6": True}, "ipv6=True goes with stack=True"),
    ],
)
def test_faults_of_the_other_level_are_refused(options, why):
    with pytest.raises(TypeError, match=why):
        Network(**options)


def test_a_wire_refuses_them_too():
    async def main():
        async with Network(echo(), stack=True) as net:
            with pytest.raises(TypeError, match="'break_after_bytes' is of modelled streams"):
                net.wire("test", "b", break_after_bytes=1)
            with pytest.raises(ValueError, match="mtu is 1280 to 65535"):
                net.wire("test", "b", mtu=500)

    asyncio.run(main())


def test_streams_in_memory_have_no_frames_to_capture(tmp_path):
    async def main():
        async with Network(echo()) as net:
            with pytest.raises(RuntimeError, match="stack=True"):
                net.capture(tmp_path / "x.pcap")

    asyncio.run(main())


@pytest.mark.parametrize("url", ["tcp://:1", "udp://:1"])
def test_a_packet_that_stays_kept_is_a_leak(url):
    vnf = VNF("b")
    kept = []
    vnf.server(url)(lambda conn, request, packet: kept.append(packet))

    async def main():
        async with vnf.test(stack=True) as net:
            a = await net.connect(url.replace(":1", "b:1"))
            a.send(b"x")
            await net.run_for(1)

    with pytest.raises(LeakError, match="packets are still kept"):
        asyncio.run(main())
