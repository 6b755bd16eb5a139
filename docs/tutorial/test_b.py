import asyncio
from pathlib import Path

from libvnf import Fixed
from libvnf.testing import Network

B = Path(__file__).with_name("b.py")
QUESTION = bytes(range(128))


async def test_b_answers_what_c_says() -> None:
    async with Network(seed=7, loss=0.05) as net:
        await net.serve("tcp://c:6000", lambda conn, request, packet: conn.send(packet[::-1]), framing=Fixed(128))
        await net.start(B, settings={"c": "tcp://c:6000"})
        a = await net.connect("tcp://b:5000")
        assert await a.ask(QUESTION) == QUESTION[::-1]


async def test_a_is_told_when_c_is_silent() -> None:
    async with Network() as net:
        await net.serve("tcp://c:6000", lambda conn, request, packet: None)
        await net.start(B, settings={"c": "tcp://c:6000"})
        a = await net.connect("tcp://b:5000")
        a.send(QUESTION)
        try:
            await a.receive()
        except ConnectionError:
            assert net.clock.now > 10
        else:
            raise AssertionError("an answer from nowhere")


if __name__ == "__main__":
    asyncio.run(test_b_answers_what_c_says())
    asyncio.run(test_a_is_told_when_c_is_silent())
