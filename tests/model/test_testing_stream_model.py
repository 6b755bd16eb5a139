"""A stream in memory under random operations of both ends, against an oracle of two byte strings."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from libvnf.testing.clock import Clock
from libvnf.testing.fabric import Fabric
from libvnf.testing.faults import Faults


class End(asyncio.Protocol):
    """Checks the order in which asyncio calls a protocol: made, data and pauses, perhaps the end, lost once."""

    def __init__(self):
        self.got, self.sent, self.state, self.paused, self.error = b"", b"", "new", False, None

    def connection_made(self, transport):
        assert self.state == "new"
        self.transport, self.state = transport, "open"

    def data_received(self, data):
        assert self.state == "open" and data
        assert self.transport.is_reading(), "data in spite of pause_reading"
        self.got += data

    def eof_received(self):
        assert self.state == "open"
        self.state = "ended"
        return True

    def pause_writing(self):
        assert self.state in ("open", "ended") and not self.paused
        self.paused = True

    def resume_writing(self):
        assert self.state in ("open", "ended") and self.paused
        self.paused = False

    def connection_lost(self, error):
        assert self.state in ("open", "ended")
        self.state, self.error = "lost", error


operations = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(
            ["write", "write", "write", "pause", "resume", "end", "close", "abort", "wait", "cut", "partition"]
        ),
        st.integers(1, 4000),
    ),
    max_size=40,
)
faults = st.builds(
    Faults,
    loss=st.sampled_from([0.0, 0.2]),
    split=st.sampled_from([0.0, 0.5, 1.0]),
    jitter_s=st.sampled_from([0.0, 0.01]),
    breaks=st.sampled_from([0.0, 0.01]),
    in_flight_bytes=st.sampled_from([1, 500, 65536]),
)


@given(seed=st.integers(0, 2**32), faults=faults, script=operations)
@settings(max_examples=150, deadline=None)
def test_what_arrives_is_what_was_sent_and_every_end_hears_its_end_once(seed, faults, script):
    async def main():
        clock = Clock()
        clock.install(asyncio.current_task())
        fabric = Fabric(seed, faults)
        served = []
        fabric.host("b").listen("tcp://:1", lambda: served.append(End()) or served[-1])
        _, client = await fabric.host("a").create_connection(End, "tcp://b:1")
        ends, finished, harmed = [client, served[0]], set(), faults.breaks > 0
        for number, operation, size in script:
            end = ends[number]
            if operation == "write" and number not in finished:
                data = bytes([number + 1]) * size if size % 2 else bytes(size)
                if not end.transport.is_closing():
                    end.sent += data
                end.transport.write(data)
            elif operation in ("pause", "resume"):
                getattr(end.transport, f"{operation}_reading")()
            elif operation in ("end", "close"):
                finished.add(number)
                end.transport.write_eof() if operation == "end" else end.transport.close()
                harmed |= operation == "close"  # what comes after it is answered with a reset
            elif operation in ("abort", "cut"):
                end.transport.abort() if operation == "abort" else fabric.cut("a")
                harmed = True
            elif operation == "partition":
                fabric.partition("a", "b")
                fabric.after(size / 100, fabric.heal)
            else:
                await asyncio.sleep(size / 1000)
            assert ends[1 - number].got == end.sent[: len(ends[1 - number].got)]
        for end in ends:
            end.transport.resume_reading()
        await asyncio.sleep(900)
        for end, other in (ends, ends[::-1]):
            assert other.got == end.sent[: len(other.got)]
            if not harmed:
                assert other.got == end.sent
        for end in ends:
            end.transport.close()
            end.transport.resume_reading()
        await asyncio.sleep(900)
        if all(end.state != "lost" and end.transport.get_write_buffer_size() for end in ends):
            ends[
                0
            ].transport.abort()  # each waits for the other to read: asyncio's closing transports hang so on sockets too
            await asyncio.sleep(900)
        assert [end.state for end in ends] == ["lost", "lost"]
        assert not fabric.streams
        fabric.close()
        clock.uninstall()

    asyncio.run(main())
