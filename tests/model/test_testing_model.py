"""VNFs under random faults, against small oracles of what any network may do to them."""

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from libvnf import VNF, Field, Fixed
from libvnf.testing import Network

probability = st.sampled_from([0.0, 0.05, 0.3])
seeds = st.integers(0, 2**32)
runs = settings(max_examples=30, deadline=None)


@given(
    seed=seeds,
    loss=probability,
    duplicate=probability,
    reorder=probability,
    corrupt=probability,
    count=st.integers(1, 60),
    stack=st.booleans(),
)
@runs
def test_no_datagram_is_invented_and_none_comes_more_often_than_it_was_doubled(
    seed, loss, duplicate, reorder, corrupt, count, stack
):
    """Oracle: each echo travels twice, so it comes at most 4 times, and exactly once on a wire without faults. The
    stack drops what was corrupted, and has to ask for its neighbours first.
    """
    faults = {"loss": loss, "duplicate": duplicate, "reorder": reorder, "corrupt": corrupt, "stack": stack}
    vnf = VNF("b")

    @vnf.server("udp://:1")
    def on_data(conn, request, packet):
        conn.send(packet)

    async def main():
        async with vnf.test(seed=seed, **faults) as net:
            arrived = Counter()
            a = await net.connect("udp://b:1")
            a.on_data(lambda conn, request, packet: arrived.update([bytes(packet)]))
            sent = [b"%08d" % number for number in range(count)]
            for data in sent:
                a.send(data)
                await net.run_for(0.001)
            await net.run_for(5)
            statistics = net.statistics()["network"]
            strangers = [data for data in arrived if data not in sent]
            assert len(strangers) <= (0 if stack else statistics.get("corrupted", 0))
            assert sum(arrived.values()) <= 4 * count
            if not corrupt:  # one flipped bit may turn a datagram into another that was sent
                assert all(times <= 4 for times in arrived.values())
            if not corrupt and not duplicate:
                assert all(times == 1 for times in arrived.values())
            if not loss and not (stack and corrupt):
                assert sum(arrived.values()) >= count
            if not (loss or duplicate or corrupt):
                assert arrived == Counter(sent)

    asyncio.run(main())


@given(
    seed=seeds,
    messages=st.lists(st.binary(min_size=1, max_size=5000), min_size=1, max_size=20),
    breaks=st.sampled_from([0.0, 0.02]),
    break_after=st.sampled_from([None, 3000]),
    loss=probability,
    in_flight=st.sampled_from([100, 65536]),
)
@runs
def test_a_streams_bytes_come_in_order_or_it_ends_with_a_reason(seed, messages, breaks, break_after, loss, in_flight):
    """Oracle: what has come back is a prefix of what was sent; all of it, unless the connection gives a reason."""
    vnf = VNF("b")

    @vnf.session("tcp://:1")
    async def echo(conn):
        async for piece in conn:
            conn.send(piece)
            await conn.drain()

    faults = {
        "loss": loss,
        "breaks": breaks,
        "break_after_bytes": break_after,
        "in_flight_bytes": in_flight,
        "jitter_s": 0.01,
    }

    async def main():
        async with vnf.test(seed=seed, **faults) as net:
            try:
                a = await net.connect("tcp://b:1")
            except ConnectionError:
                assert loss or breaks
                return
            sent, back, broken = b"".join(messages), b"", None
            try:
                for message in messages:
                    a.send(message)
                    await net.run_for(0.002)
                a.end()
                async for piece in a:
                    back += bytes(piece)
            except ConnectionError as error:
                broken = error
            assert sent.startswith(back)
            assert back == sent or (broken is not None and a.closed and a.close_reason)

    asyncio.run(main())


@given(
    seed=seeds,
    count=st.integers(1, 40),
    retries=st.integers(0, 6),
    loss=st.sampled_from([0.0, 0.3]),
    stack=st.booleans(),
)
@runs
def test_each_ask_over_a_lossy_wire_ends_once_with_its_own_answer_or_a_timeout(seed, count, retries, loss, stack):
    vnf = VNF("b")
    client = vnf.client("udp://c:1", request_id=Field(0, 4), timeout_s=0.5, retries=retries)

    async def ask(question):
        return bytes(await client.ask(question))  # the packet itself would be one that this test keeps of the VNF's

    def on_c(conn, request, packet):
        conn.send(bytes(packet[:4]) + b" answer to " + bytes(packet[4:]))

    async def main():
        async with Network(seed=seed, loss=loss, duplicate=0.2, reorder=0.2, jitter_s=0.05, stack=stack) as net:
            await net.serve("udp://c:1", on_c)
            await net.start(vnf)
            await net.run_for(1)
            questions = [number.to_bytes(4, "big") + b"%04d" % number for number in range(count)]
            results = await asyncio.gather(*map(ask, questions), return_exceptions=True)
            assert len(results) == count
            for question, result in zip(questions, results, strict=True):
                if isinstance(result, BaseException):
                    assert isinstance(result, TimeoutError)
                else:
                    assert result == question[:4] + b" answer to " + question[4:]
            assert client.outstanding == 0
            if not loss and not (stack and count > 16 and not retries):  # so many wait for a neighbour's link address
                assert not any(isinstance(result, BaseException) for result in results)

    asyncio.run(main())


@given(
    seed=seeds,
    loss=probability,
    jitter_s=st.sampled_from([0.0, 0.05]),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    stack=st.booleans(),
)
@runs
def test_framed_requests_are_answered_in_order_however_they_are_torn(seed, loss, jitter_s, sizes, stack):
    vnf = VNF("b")

    @vnf.server("tcp://:1", framing=Fixed(7))
    async def on_request(conn, request, packet):
        await asyncio.sleep(int(bytes(packet)) % 3)
        conn.send(packet)

    async def main():
        async with vnf.test(seed=seed, loss=loss, jitter_s=jitter_s, stack=stack) as net:
            try:
                a = await net.connect("tcp://b:1")
            except OSError:  # three questions for a link address were lost, or a handshake took too long
                assert stack and loss
                return
            number = 0
            for size in sizes:
                a.send(b"".join(b"%07d" % (number + offset) for offset in range(size)))
                number += size
                await net.run_for(0.01)
            for expected in range(number):
                assert await a.receive() == b"%07d" % expected

    asyncio.run(main())
