"""A VNF under test: the same connection code as in production, on the in-memory network."""

import asyncio
import random
import re
import unittest
from pathlib import Path

import pytest

from libvnf import VNF, ConfigError, Field, Fixed, LengthPrefixed
from libvnf.testing import DeadlockError, LeakError, Network

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "testing.md"
pytest_plugins = ["pytester"]


@pytest.fixture(params=[{}, {"stack": True}], ids=["model", "stack"])
def level(request):
    """What holds on both: streams in memory, and the user-space stack on virtual Ethernet."""
    return request.param


def echo(url="tcp://:5000", framing=None, name="b"):
    vnf = VNF(name)

    @vnf.server(url, framing=framing)
    def on_data(conn, request, packet):
        conn.send(packet)

    return vnf


def asks(name="b", default="tcp://10.0.0.3:5000"):
    """The papers' B: asks C, answers A."""
    vnf = VNF(name)
    c = vnf.setting("c", default=default)

    @vnf.server("tcp://:5000", framing=Fixed(4))
    async def on_request(a, request, packet):
        async with a.connect(c, framing=Fixed(4)) as peer:
            reply = await peer.ask(packet)
        a.send(reply)

    return vnf


def reverse(conn, request, packet):
    conn.send(bytes(packet)[::-1])


def test_the_example_of_the_interface_works(level):
    async def main():
        async with asks().test(seed=7, loss=0.01, reorder=0.02, **level) as net:
            await net.serve("tcp://10.0.0.3:5000", reverse, framing=Fixed(4))
            a = await net.connect("tcp://b:5000")
            a.send(b"1234")
            assert await a.receive() == b"4321"

    asyncio.run(main())


@pytest.mark.parametrize("url", ["tcp://:5000", "udp://:5000", "unix:///run/b.sock"])
def test_every_kind_of_endpoint_echoes(url, level):
    async def main():
        async with echo(url, Fixed(5)).test(**level) as net:
            a = await net.connect(url.replace("//:", "//b:"))
            for number in range(100):
                assert await a.ask(b"%05d" % number) == b"%05d" % number

    asyncio.run(main())


def test_an_unframed_answer_comes_to_the_test_as_it_was_sent(level):
    async def main():
        async with echo().test(**level) as net:
            a = await net.connect("tcp://b:5000")
            a.send(b"x")
            assert await a.receive() == b"x"

    asyncio.run(main())


def test_a_session_sees_the_test_end_and_half_close(level):
    vnf = VNF("b")

    @vnf.session("tcp://:5000")
    async def count(conn):
        total = 0
        async for piece in conn:
            total += len(piece)
        conn.send(str(total).encode())

    async def main():
        async with vnf.test(seed=5, jitter_s=0.01, **level) as net:
            a = await net.connect("tcp://b:5000")
            a.send(bytes(300_000))
            a.end()
            assert await a.receive() == b"300000"
            assert await a.receive() == b""

    asyncio.run(main())


def test_several_vnfs_meet_on_one_network_by_their_settings(level):
    async def main():
        async with Network(seed=1, **level) as net:
            await net.start(lambda: echo(framing=Fixed(4), name="c"))
            b = await net.start(asks, settings={"c": "tcp://c:5000"})
            a = await net.connect("tcp://b:5000")
            assert await a.ask(b"ping") == b"ping"
            assert set(net.statistics()["vnfs"]) == {"b", "c"}
            assert b.name == "b"

    asyncio.run(main())


def test_a_vnf_is_started_from_its_file_with_settings(tmp_path):
    file = tmp_path / "b.py"
    file.write_text(
        "from libvnf import VNF\n"
        "vnf = VNF('filed')\n"
        "word = vnf.setting('word', default='no')\n"
        "@vnf.server('udp://:1')\n"
        "def on_data(conn, request, packet):\n"
        "    conn.send(word.encode())\n"
        "vnf.run()\n"
    )

    async def main():
        async with Network() as net:
            await net.start(file, settings={"word": "yes"})
            a = await net.connect("udp://filed:1")
            assert await a.ask(b"?") == b"yes"

    asyncio.run(main())


def test_settings_of_a_vnf_that_is_made_already_are_refused():
    async def main():
        async with Network() as net:
            with pytest.raises(ConfigError, match="settings of b are final"):
                await net.start(asks(), settings={"c": "tcp://c:1"})

    asyncio.run(main())


def test_connecting_where_nobody_listens_is_refused(level):
    async def main():
        async with echo().test(**level) as net:
            why = "refused" if level else "nobody listens on tcp://b:6000"
            with pytest.raises(ConnectionRefusedError, match=why):
                await net.connect("tcp://b:6000")

    asyncio.run(main())


def test_a_vnf_hears_that_its_peer_refuses(level):
    vnf = VNF("b")
    heard = []

    @vnf.session("tcp://:5000")
    async def on_session(a):
        try:
            await a.connect("tcp://c:5000")
        except ConnectionError as error:
            heard.append(str(error))

    async def main():
        async with vnf.test(**level) as net:
            a = await net.connect("tcp://b:5000")
            assert await a.receive() == b""
            assert len(heard) == 1

    asyncio.run(main())


def test_a_connection_into_a_partition_waits_for_the_authors_timeout_in_virtual_time():
    vnf = VNF("b")
    after = []

    @vnf.session("tcp://:5000")
    async def on_session(a):
        try:
            async with asyncio.timeout(30):
                await a.connect("tcp://c:5000")
        except TimeoutError:
            after.append(asyncio.get_running_loop().time())

    async def main():
        async with vnf.test() as net:
            await net.serve("tcp://c:5000", reverse)
            net.partition("b", "c")
            a = await net.connect("tcp://b:5000")
            assert await a.receive() == b""
            assert after[0] == pytest.approx(30, abs=0.1)

    asyncio.run(main())


def test_a_cut_ends_connections_with_a_reason(level):
    async def main():
        async with echo(framing=Fixed(1)).test(**level) as net:
            a = await net.connect("tcp://b:5000")
            assert await a.ask(b"x") == b"x"
            assert net.cut("test", "b") == 1
            with pytest.raises(ConnectionError):
                await a.receive()
            assert a.closed and a.close_reason

    asyncio.run(main())


def test_back_pressure_reaches_a_sender_through_the_network(level):
    vnf = VNF("b")
    sent = []

    @vnf.session("tcp://:5000")
    async def pour(conn):
        for _ in range(64):
            conn.send(bytes(65536))
            await conn.drain()
            sent.append(1)

    async def main():
        async with vnf.test(**level) as net:
            a = await net.connect("tcp://b:5000")
            a.pause()
            await net.run_for(100)
            assert len(sent) < 16
            a.resume()
            total = 0
            async for piece in a:
                total += len(piece)
            assert total == 64 * 65536

    asyncio.run(main())


def test_an_hour_of_a_vnfs_timers_passes_at_once(level):
    vnf = VNF("b")
    ticks = []
    vnf.every(60, ticks.append, 1)

    async def main():
        async with vnf.test(**level) as net:
            await net.run_for(3600)
            assert len(ticks) == 60
            assert net.clock.now == 3600.0

    asyncio.run(main())


def test_waiting_in_vain_is_an_error_with_the_trace():
    async def main():
        async with echo().test(limit_s=1000, seed="x1") as net:
            a = await net.connect("tcp://b:5000")
            await a.receive()

    with pytest.raises(DeadlockError, match=r"test_testing_network\.py|connection\.py") as caught:
        asyncio.run(main())
    assert "seed='x1'" in caught.value.__notes__[0]
    assert "accepted" in caught.value.__notes__[0]


def test_a_failing_test_shows_the_seed_and_the_last_events():
    async def main():
        async with echo().test(seed=42) as net:
            await net.connect("tcp://b:5000")
            raise ValueError("the test's own")

    with pytest.raises(ValueError, match="own") as caught:
        asyncio.run(main())
    assert "seed=42" in caught.value.__notes__[0]


def test_a_request_that_stays_open_is_a_leak(level):
    vnf = VNF("b")

    @vnf.server("udp://:1")
    def on_data(conn, request, packet):
        request.after(10_000, lambda: None)

    async def main(**options):
        async with vnf.test(**options, **level) as net:
            a = await net.connect("udp://b:1")
            a.send(b"x")
            await net.run_for(1)

    with pytest.raises(LeakError, match=r"b: 1 request\(s\) still open"):
        asyncio.run(main())


def test_a_packet_that_stays_kept_is_a_leak_unless_told_otherwise():
    def hoarder():
        vnf = VNF("b")
        vnf.kept = []

        @vnf.server("tcp://:1")
        def on_data(conn, request, packet):
            vnf.kept.append(packet)

        return vnf

    async def main(vnf, **options):
        async with vnf.test(**options) as net:
            a = await net.connect("tcp://b:1")
            a.send(b"x")
            await net.run_for(1)

    with pytest.raises(LeakError, match=r"b: packets are still kept: \d+ bytes"):
        asyncio.run(main(hoarder()))
    asyncio.run(main(hoarder(), check_leaks=False))


def test_what_the_test_keeps_is_no_leak(level):
    kept = []

    async def main():
        async with echo(framing=Fixed(1)).test(**level) as net:
            a = await net.connect("tcp://b:5000")
            kept.append(await a.ask(b"x"))

    asyncio.run(main())
    assert kept == [b"x"]


def test_what_a_played_server_raises_fails_the_test(level):
    def on_c(conn, request, packet):
        assert packet == b"want"

    async def main():
        async with asks().test(**level) as net:
            await net.serve("tcp://10.0.0.3:5000", on_c, framing=Fixed(4))
            a = await net.connect("tcp://b:5000")
            a.send(b"have")
            await net.run_for(1)

    with pytest.raises(AssertionError, match="want"):
        asyncio.run(main())


def test_a_client_retransmits_in_virtual_time(level):
    vnf = VNF("b")
    client = vnf.client("udp://c:1", request_id=Field(0, 4), timeout_s=1.0, retries=3)

    async def main():
        seen = []

        async with vnf.test(**level) as net:
            await net.serve("udp://c:1", lambda conn, request, packet: seen.append(bytes(packet)))
            with pytest.raises(TimeoutError):
                await client.ask(b"0000 hello")
            assert len(seen) == 4, "sent once and three times again"

    asyncio.run(main())


def conversation(seed):
    async def main():
        async with Network(seed=seed, loss=0.1, duplicate=0.1, reorder=0.1, jitter_s=0.02, check_leaks=False) as net:
            await net.start(lambda: echo(framing=Fixed(4), name="c"))
            await net.start(asks, settings={"c": "tcp://c:5000"})
            for number in range(20):
                a = await net.connect("tcp://b:5000")
                assert await a.ask(b"%04d" % number) == b"%04d" % number
                a.close()
            return net.trace, dict(net.statistics()["network"]), net.clock.now, random.random()

    return asyncio.run(main())


def test_the_seed_determines_everything():
    assert conversation(7) == conversation(7)
    assert conversation(7) != conversation(8)


def test_the_process_gets_its_randomness_back():
    random.seed(1)
    wanted = random.random()
    random.seed(1)
    conversation(3)
    assert random.random() == wanted


def test_a_fault_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match=r"'losses' is no fault: expected some of .*loss"):
        Network(losses=1)


def test_two_vnfs_on_one_host_are_refused(level):
    async def main():
        async with echo().test(**level) as net:
            with pytest.raises(ConfigError, match="host 'b' already"):
                await net.start(echo("tcp://:6000"))
            await net.start(echo("tcp://:6000"), host="b2")
            assert not (await net.connect("tcp://b2:6000")).closed

    asyncio.run(main())


def test_a_vnf_that_cannot_start_leaves_the_loop_as_it_was():
    async def main():
        loop = asyncio.get_running_loop()
        clash = VNF("b")
        for _ in range(2):
            clash.server("tcp://:5000")(reverse)
        with pytest.raises(Exception, match="in use"):
            async with clash.test():
                pass
        assert "time" not in vars(loop)

    asyncio.run(main())


def test_a_prefix_that_is_stripped_is_not_guessed_back(level):
    async def main():
        async with echo(framing=LengthPrefixed(2, strip=True)).test(**level) as net:
            a = await net.connect("tcp://b:5000", framing=None)
            assert await a.ask(b"\x00\x03abc") == b"abc"

    asyncio.run(main())


class UnderUnittest(unittest.IsolatedAsyncioTestCase):
    async def test_it_works_in_an_isolated_test_case(self):
        async with echo(framing=Fixed(1)).test() as net:
            a = await net.connect("tcp://b:5000")
            self.assertEqual(await a.ask(b"x"), b"x")


def test_the_fixture_is_a_network_and_tells_the_story_of_a_failure(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(GUIDE.parents[2]))
    pytester.makeconftest('pytest_plugins = ["libvnf.testing.fixtures"]')
    pytester.makepyfile(
        """
        import asyncio, pytest
        from libvnf import VNF

        def echo():
            vnf = VNF("b")
            @vnf.server("udp://:1")
            def on_data(conn, request, packet):
                conn.send(packet)
            return vnf

        @pytest.mark.asyncio
        async def test_passes(vnf_network):
            await vnf_network.start(echo)
            a = await vnf_network.connect("udp://b:1")
            assert await a.ask(b"x") == b"x"
            await vnf_network.run_for(3600)

        @pytest.mark.asyncio
        @pytest.mark.vnf_network(seed=7)
        async def test_fails(vnf_network):
            await vnf_network.start(echo)
            a = await vnf_network.connect("udp://b:1")
            assert await a.ask(b"x") == b"y"

        @pytest.mark.asyncio
        async def test_hangs(vnf_network):
            await asyncio.Event().wait()
        """
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-q", "-o", "asyncio_default_fixture_loop_scope=function"
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*in-memory network: seed=7*", "*DeadlockError*"])


@pytest.mark.parametrize("number", range(len(re.findall(r"```python\n", GUIDE.read_text()))))
def test_every_example_of_the_guide_runs(number):
    example = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[number]
    exec(compile(example, f"{GUIDE.name}#{number}", "exec"), {"__name__": "example"})
