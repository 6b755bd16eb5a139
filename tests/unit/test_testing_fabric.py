"""The in-memory network under plain asyncio protocols: what any transport of asyncio promises, and the faults."""

import asyncio
import errno

import pytest

from libvnf.testing.clock import Clock
from libvnf.testing.fabric import Fabric
from libvnf.testing.faults import Dice, Faults


class Tape(asyncio.Protocol, asyncio.DatagramProtocol):
    """Records what a protocol is told, in order; ``said`` is an event per new entry."""

    def __init__(self, keep_open=False):
        self.log, self.data, self.lost = [], b"", asyncio.get_running_loop().create_future()
        self.transport, self.keep_open = None, keep_open

    def connection_made(self, transport):
        self.transport = transport
        self.log.append("made")

    def data_received(self, data):
        assert isinstance(data, bytes) and data
        assert not self.lost.done()
        self.data += data
        self.log.append(len(data))

    def eof_received(self):
        self.log.append("eof")
        return self.keep_open

    def connection_lost(self, error):
        self.log.append("lost")
        self.lost.set_result(error)

    def pause_writing(self):
        self.log.append("pause")

    def resume_writing(self):
        self.log.append("resume")

    def datagram_received(self, data, address):
        self.log.append((bytes(data), address))

    def error_received(self, error):
        self.log.append(error)

    def datagrams(self):
        return [entry[0] for entry in self.log if isinstance(entry, tuple)]


def on_fabric(seed=0, **faults):
    """Runs ``body(fabric)`` in virtual time."""

    def decorate(body):
        def test():
            async def main():
                clock = Clock()
                clock.install(asyncio.current_task())
                fabric = Fabric(seed, Faults(**faults))
                try:
                    await body(fabric)
                except asyncio.CancelledError as error:
                    clock.judge(error)
                    raise
                finally:
                    fabric.close()
                    clock.uninstall()

            asyncio.run(main())

        test.__name__ = body.__name__
        return test

    return decorate


async def pair(fabric, url="tcp://b:5000", keep_open=False):
    """Both ends of a new stream: the client's and the server's protocol."""
    served = []
    fabric.host("b").listen(url, lambda: served.append(Tape(keep_open)) or served[-1])
    _, client = await fabric.host("a").create_connection(lambda: Tape(keep_open), url)
    return client, served[-1]


@pytest.mark.parametrize("url", ["tcp://b:5000", "unix:///run/b.sock"])
def test_a_stream_carries_bytes_both_ways_and_ends(url):
    @on_fabric(seed=1)
    async def body(fabric):
        client, server = await pair(fabric, url, keep_open=True)
        client.transport.write(b"question" * 1000)
        client.transport.write_eof()
        await asyncio.sleep(1)
        assert server.data == b"question" * 1000
        assert server.log[-1] == "eof"
        server.transport.write(b"answer")
        server.transport.close()
        assert await server.lost is None
        await asyncio.sleep(1)
        assert client.data == b"answer" and client.log[-1] == "eof"
        client.transport.close()
        assert await client.lost is None
        assert not fabric.streams

    body()


@on_fabric()
async def test_names_of_both_ends_are_as_asyncio_gives_them(fabric):
    client, server = await pair(fabric)
    assert client.transport.get_extra_info("peername") == ("b", 5000)
    assert client.transport.get_extra_info("sockname") == ("a", 49152)
    assert server.transport.get_extra_info("peername") == ("a", 49152)
    assert server.transport.get_extra_info("sockname") == ("b", 5000)
    assert server.transport.get_extra_info("socket", "none") == "none"


@on_fabric()
async def test_nobody_listens_is_refused_and_says_who_does(fabric):
    fabric.host("b").listen("tcp://:5000", Tape)
    with pytest.raises(ConnectionRefusedError, match=r"nobody listens on tcp://b:6000 \(listening: tcp://b:5000\)"):
        await fabric.host("a").create_connection(Tape, "tcp://b:6000")


@on_fabric()
async def test_a_port_is_bound_once_and_free_again_after_close(fabric):
    host = fabric.host("b")
    listener = host.listen("tcp://:5000", Tape)
    with pytest.raises(OSError, match="in use") as caught:
        host.listen("tcp://0.0.0.0:5000", Tape)
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()
    host.listen("tcp://:5000", Tape)


@on_fabric()
async def test_a_host_is_reached_by_every_name_it_listens_on(fabric):
    host = fabric.host("b")
    host.listen("tcp://10.0.0.2:5000", Tape)
    host.listen("tcp://:6000", Tape)
    for url in ("tcp://10.0.0.2:5000", "tcp://10.0.0.2:6000", "tcp://b:6000"):
        await fabric.host("a").create_connection(Tape, url)
    with pytest.raises(OSError, match="name of host"):
        fabric.host("c").listen("tcp://10.0.0.2:7000", Tape)


@on_fabric(seed=3)
async def test_messages_arrive_torn_and_merged_but_in_order(fabric):
    client, server = await pair(fabric)
    for number in range(300):
        client.transport.write(b"%03d" % number)
    await asyncio.sleep(1)
    assert server.data == b"".join(b"%03d" % number for number in range(300))
    sizes = [entry for entry in server.log if isinstance(entry, int)]
    assert any(size % 3 for size in sizes), "no message was torn"
    assert len(sizes) < 300, "none were merged"


@on_fabric(in_flight_bytes=1000)
async def test_a_reader_that_pauses_slows_the_writer_down(fabric):
    client, server = await pair(fabric)
    client.transport.set_write_buffer_limits(high=2000, low=500)
    server.transport.pause_reading()
    client.transport.write(bytes(5000))
    await asyncio.sleep(10)
    assert client.log == ["made", "pause"]
    assert client.transport.get_write_buffer_size() == 4000
    assert server.data == b""
    server.transport.resume_reading()
    await asyncio.sleep(10)
    assert client.log == ["made", "pause", "resume"]
    assert len(server.data) == 5000


@on_fabric()
async def test_close_sends_what_is_queued_and_abort_does_not(fabric):
    client, server = await pair(fabric)
    client.transport.write(b"x" * 200_000)
    client.transport.close()
    assert client.transport.is_closing()
    client.transport.write(b"late")
    assert await server.lost is None and len(server.data) == 200_000

    other, served = await pair(fabric, "tcp://b:6000")
    other.transport.write(b"x" * 200_000)
    other.transport.abort()
    assert await other.lost is None
    assert isinstance(await served.lost, ConnectionResetError)
    assert len(served.data) < 200_000


@on_fabric()
async def test_closing_on_unread_data_resets_the_other_end(fabric):
    client, server = await pair(fabric)
    server.transport.pause_reading()
    client.transport.write(b"never read")
    await asyncio.sleep(1)
    server.transport.close()
    assert isinstance(await client.lost, ConnectionResetError)


@on_fabric(in_flight_bytes=1)
async def test_closing_on_unread_data_resets_also_after_the_own_end(fabric):
    client, server = await pair(fabric, keep_open=True)
    client.transport.pause_reading()
    client.transport.write_eof()
    server.transport.write(b"never read")
    await asyncio.sleep(1)
    client.transport.close()
    assert isinstance(await server.lost, ConnectionResetError)


@on_fabric()
async def test_writing_to_an_end_that_is_gone_resets(fabric):
    client, server = await pair(fabric, keep_open=True)
    server.transport.close()
    await asyncio.sleep(1)
    assert client.log[-1] == "eof"
    client.transport.write(b"into the void")
    assert isinstance(await client.lost, ConnectionResetError)


@on_fabric()
async def test_writing_after_the_end_is_the_authors_error(fabric):
    client, _ = await pair(fabric)
    client.transport.write_eof()
    with pytest.raises(RuntimeError, match="write_eof"):
        client.transport.write(b"x")
    with pytest.raises(TypeError):
        client.transport.write("text")


def test_a_protocol_that_raises_is_reported_and_ends_its_stream():
    @on_fabric()
    async def body(fabric):
        reported = []
        fabric.loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        client, server = await pair(fabric)
        server.data_received = lambda data: 1 / 0
        client.transport.write(b"x")
        assert isinstance(await server.lost, ZeroDivisionError)
        assert isinstance(await client.lost, ConnectionResetError)
        assert [type(error) for error in reported] == [ZeroDivisionError]

    body()


@on_fabric()
async def test_cut_breaks_both_ends_of_the_streams_between_two_hosts(fabric):
    client, server = await pair(fabric)
    bystander, _ = await pair(fabric, "tcp://b:6000")
    fabric.host("c").listen("tcp://c:1", Tape)
    _, other = await fabric.host("a").create_connection(Tape, "tcp://c:1")
    assert fabric.cut("a", "b") == 2
    for end in (client, server, bystander):
        assert isinstance(await end.lost, ConnectionResetError)
    assert not other.lost.done()
    assert fabric.cut("a") == 1


@on_fabric(break_after_bytes=1000)
async def test_a_stream_breaks_after_the_bytes_it_was_given(fabric):
    client, server = await pair(fabric)
    client.transport.write(bytes(999))
    await asyncio.sleep(1)
    assert not client.lost.done()
    client.transport.write(bytes(2))
    assert isinstance(await client.lost, ConnectionResetError)
    assert isinstance(await server.lost, ConnectionResetError)
    assert len(server.data) <= 1000


@on_fabric(loss=0.3, seed=5)
async def test_loss_delays_a_stream_and_loses_nothing(fabric):
    client, server = await pair(fabric)
    for number in range(100):
        client.transport.write(bytes([number]) * 100)
        await asyncio.sleep(0.01)
    await asyncio.sleep(900)
    assert server.data == b"".join(bytes([number]) * 100 for number in range(100))
    assert fabric.counters["retransmitted"] > 10


@on_fabric(loss=1.0)
async def test_a_wire_that_loses_everything_times_out(fabric):
    fabric.host("b").listen("tcp://:5000", Tape)
    with pytest.raises(TimeoutError, match="given up"):
        await fabric.host("a").create_connection(Tape, "tcp://b:5000")


@on_fabric()
async def test_a_partition_holds_streams_until_it_heals(fabric):
    client, server = await pair(fabric)
    fabric.partition("a", "b")
    client.transport.write(b"first")
    await asyncio.sleep(60)
    client.transport.write(b"second")
    assert server.data == b""
    fabric.heal("b", "a")
    await asyncio.sleep(1)
    assert server.data == b"firstsecond"


@on_fabric(jitter_s=0.05)
async def test_what_is_sent_after_healing_does_not_overtake_what_was_held(fabric):
    client, server = await pair(fabric)
    for number in range(50):
        fabric.partition("a", "b")
        client.transport.write(b"held%02d" % number)
        await asyncio.sleep(1)
        fabric.heal()
        client.transport.write(b"sent%02d" % number)
        await asyncio.sleep(1)
    assert server.data == b"".join(b"held%02dsent%02d" % (number, number) for number in range(50))


@on_fabric()
async def test_a_partition_that_lasts_ends_streams_with_a_timeout(fabric):
    client, server = await pair(fabric)
    fabric.partition("b")
    client.transport.write(b"lost")
    assert isinstance(await client.lost, TimeoutError)
    assert fabric.loop.time() > 600
    fabric.heal()
    assert isinstance(await server.lost, TimeoutError)
    assert server.data == b""


@on_fabric()
async def test_datagrams_reach_their_port_and_the_answer_comes_back(fabric):
    server = fabric.host("b").listen("udp://:5000", Tape).get_protocol()
    _, client = await fabric.host("a").create_connection(Tape, "udp://b:5000")
    client.transport.sendto(b"ping")
    await asyncio.sleep(0.01)
    assert server.log == ["made", (b"ping", ("a", 49152))]
    server.transport.sendto(b"pong", ("a", 49152))
    await asyncio.sleep(0.01)
    assert client.log == ["made", (b"pong", ("b", 5000))]
    assert client.transport.get_extra_info("peername") == ("b", 5000)


@on_fabric()
async def test_a_connected_socket_hears_of_a_port_where_nobody_is(fabric):
    _, client = await fabric.host("a").create_connection(Tape, "udp://b:5000")
    client.transport.sendto(b"anyone")
    await asyncio.sleep(1)
    assert [type(entry) for entry in client.log[1:]] == [ConnectionRefusedError]


@on_fabric()
async def test_a_datagram_that_is_too_long_is_an_error(fabric):
    _, client = await fabric.host("a").create_connection(Tape, "udp://b:5000")
    client.transport.sendto(bytes(65508))
    await asyncio.sleep(1)
    assert client.log[-1].errno == errno.EMSGSIZE


@on_fabric(seed=2, loss=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1, jitter_s=0.0)
async def test_datagrams_are_lost_doubled_reordered_and_corrupted_as_the_statistics_say(fabric):
    server = fabric.host("b").listen("udp://:5000", Tape).get_protocol()
    _, client = await fabric.host("a").create_connection(Tape, "udp://b:5000")
    sent = [b"%05d" % number for number in range(2000)]
    for data in sent:
        client.transport.sendto(data)
        await asyncio.sleep(0.0001)
    await asyncio.sleep(1)
    arrived, counters = server.datagrams(), fabric.counters
    known = [data for data in arrived if data in set(sent)]
    assert 150 < counters["lost"] < 250
    assert counters["delivered"] == len(arrived)
    assert known != sorted(known), "none overtook another"
    assert len(known) > len(set(known)), "none came twice"
    assert 100 < len(arrived) - len(known) < 300, "none were corrupted"


@on_fabric()
async def test_a_partition_drops_datagrams_and_counts_them(fabric):
    server = fabric.host("b").listen("udp://:5000", Tape).get_protocol()
    _, client = await fabric.host("a").create_connection(Tape, "udp://b:5000")
    client.transport.sendto(b"under way")
    fabric.partition("a", "b")
    client.transport.sendto(b"sent in vain")
    await asyncio.sleep(1)
    assert server.datagrams() == []
    assert fabric.counters["severed"] == 2
    fabric.heal()
    client.transport.sendto(b"again")
    await asyncio.sleep(1)
    assert server.datagrams() == [b"again"]


@on_fabric()
async def test_a_wire_has_faults_of_its_own(fabric):
    fabric.wire("a", "b", loss=1.0)
    for host in ("b", "c"):
        fabric.host(host).listen("udp://:5000", Tape)
        _, client = await fabric.host("a").create_connection(Tape, f"udp://{host}:5000")
        client.transport.sendto(b"x")
    assert fabric.counters["lost"] == 1 and fabric.counters["sent"] == 1


@on_fabric(in_flight_bytes=10)
async def test_a_flow_of_datagrams_is_bounded_and_counts_what_it_drops(fabric):
    fabric.host("b").listen("udp://:5000", Tape)
    _, client = await fabric.host("a").create_connection(Tape, "udp://b:5000")
    for _ in range(100):
        client.transport.sendto(bytes(10))
    assert fabric.counters["sent"] == 64 and fabric.counters["overflowed"] == 36


def run_of(seed):
    """The trace of a small conversation under every fault."""
    traces = []

    @on_fabric(seed=seed, loss=0.2, duplicate=0.1, reorder=0.2, corrupt=0.1, jitter_s=0.01, breaks=0.01)
    async def body(fabric):
        client, server = await pair(fabric, keep_open=True)
        udp = fabric.host("b").listen("udp://:1", Tape).get_protocol()
        _, sender = await fabric.host("a").create_connection(Tape, "udp://b:1")
        for number in range(50):
            client.transport.write(b"%d" % number * 50)
            server.transport.write(b"%d" % number * 20)
            sender.transport.sendto(b"%d" % number)
            await asyncio.sleep(0.1)
        await asyncio.sleep(60)
        traces.append((list(fabric.trace), client.log, server.log, udp.log))

    body()
    return [str(trace) for trace in traces]


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    assert run_of(7) == run_of(7)
    assert run_of(7) != run_of(8)


@pytest.mark.parametrize(
    "wrong",
    [{"loss": 1.5}, {"delay_s": -1}, {"jitter_s": float("nan")}, {"segment_bytes": 0}, {"break_after_bytes": -1}],
)
def test_faults_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Faults(**wrong)


def test_a_corrupted_datagram_differs_in_one_bit():
    faults = Faults(corrupt=1.0)
    dice = Dice(1, "flow")
    for _ in range(100):
        word, [(_, copy)] = dice.datagram(b"0123456789", faults)
        assert word == "corrupted"
        assert sum((a ^ b).bit_count() for a, b in zip(copy, b"0123456789", strict=True)) == 1
