"""TCP of the user-space stack under random faults and random users, against an oracle of what a byte stream is."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from libvnf import VNF
from libvnf.testing import Network

runs = settings(max_examples=max(20, settings().max_examples // 5), deadline=None)
probability = st.sampled_from([0.0, 0.02, 0.2])
actions = st.one_of(
    st.tuples(st.sampled_from("ab"), st.integers(1, 20_000)),
    st.tuples(st.just("wait"), st.sampled_from([0.0005, 0.003, 0.05, 0.5, 4.0])),
    st.tuples(st.sampled_from(["partition", "heal", "cut", "end a", "end b", "stop a", "go a"]), st.none()),
)


class End:
    """One end of the connection: what it was told to send, and what it has heard."""

    def __init__(self, conn, salt):
        self.conn, self.salt, self.sent, self.heard, self.ended = conn, salt, bytearray(), bytearray(), False
        self.over = False

    def send(self, size):
        if not (self.ended or self.conn.closed):
            data = bytes((self.salt + len(self.sent) + number) % 251 for number in range(size))
            self.conn.send(data)
            self.sent += data

    def end(self):
        if not (self.ended or self.conn.closed):
            self.ended = True
            self.conn.end()

    async def listen(self):
        try:
            async for piece in self.conn:
                self.heard += bytes(piece)
            self.over = True
        except ConnectionError:
            pass


@given(
    seed=st.integers(0, 2**32),
    loss=probability,
    reorder=probability,
    duplicate=probability,
    corrupt=st.sampled_from([0.0, 0.05]),
    ipv6=st.booleans(),
    steps=st.lists(actions, max_size=25),
)
@runs
def test_each_end_hears_a_prefix_and_all_of_it_unless_there_is_a_reason(
    seed, loss, reorder, duplicate, corrupt, ipv6, steps
):
    """Oracle: what an end has heard is a prefix of what the other has sent. In the end, with the wires whole again, it
    is all of that, unless the connection says why not; and there must be a reason for that.
    """
    vnf = VNF("b")
    accepted = []

    @vnf.session("tcp://:1")
    async def serve(conn):
        end = End(conn, 7)
        accepted.append(end)
        await end.listen()
        await asyncio.sleep(10_000)

    async def main():
        faults = {"loss": loss, "reorder": reorder, "duplicate": duplicate, "corrupt": corrupt, "jitter_s": 0.002}
        async with Network(vnf, seed=seed, stack=True, ipv6=ipv6, check_leaks=False, **faults) as net:
            try:
                a = End(await net.connect("tcp://b:1"), 3)
            except OSError:
                assert loss or corrupt
                return
            listening = asyncio.create_task(a.listen())
            hard = False  # something happened that may end a connection
            for what, much in steps:
                b = accepted[0] if accepted else None
                if what == "wait":
                    await net.run_for(much)
                elif what == "a":
                    a.send(much)
                elif what == "b" and b:
                    b.send(much)
                elif what == "partition":
                    net.partition("b", "test")
                elif what == "heal":
                    net.heal()
                elif what == "cut":
                    hard |= net.cut("b") > 0
                elif what == "end a":
                    a.end()
                elif what == "end b" and b:
                    b.end()
                elif what == "stop a":
                    a.conn.pause()
                elif what == "go a":
                    a.conn.resume()
            net.heal()
            a.conn.resume()
            await net.run_for(1)
            net.wire("b", "test", loss=0.0, reorder=0.0, duplicate=0.0, corrupt=0.0)
            await net.run_for(10)  # a handshake that lost its last segment ends well, or in a reset
            a.end()
            for end in accepted:
                end.end()
            await net.run_for(120)
            b = accepted[0] if accepted else End(None, 0)
            assert b.sent.startswith(a.heard)
            assert a.sent.startswith(b.heard)
            whole = a.over and b.over and a.heard == b.sent and b.heard == a.sent
            partitioned = ("partition", None) in steps
            if not whole:
                assert hard or partitioned or loss >= 0.2 or corrupt, (a.conn, b.conn, len(a.heard), len(b.heard))
                assert a.conn.closed and a.conn.close_reason, a.conn
            listening.cancel()

    asyncio.run(main())
