"""A memif peer that lies, floods, falls silent or dies, in either role. Whatever it does ends with a counted drop or a
disconnect that says why; meanwhile the same replica answers on its other memif port and on its kernel socket, and
afterwards it has neither a descriptor nor a buffer less than before.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.integration.memif import (
    ACK,
    ADD_REGION,
    CONNECT,
    CONNECTED,
    HELLO,
    INIT,
    Change,
    Client,
    Refused,
    Server,
    message,
)
from tests.integration.replica import FreePort, attack, replica
from tests.integration.station import Station

# --- the control channel, we are the client ---------------------------------------------------------------------------


def put(step: int, form: str, at: int, value: object) -> Change:
    """In the message of that step: ``value`` at that offset."""

    def change(number: int, data: bytearray, descriptors: list[int]) -> None:
        if number == step:
            struct.pack_into("<" + form, data, at, value)

    return change


def become(step: int, data: bytes) -> Change:
    """Another message in its place; its descriptors come along."""

    def change(number: int, found: bytearray, descriptors: list[int]) -> None:
        if number == step:
            found[:] = data

    return change


def attach(step: int, make: Callable[[], int], count: int = 1) -> Change:
    """Other descriptors in place of its own."""

    def change(number: int, data: bytearray, descriptors: list[int]) -> None:
        if number == step:
            descriptors[:] = [make() for _ in range(count)]

    return change


def a_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


LIES: dict[str, tuple[Change, str]] = {
    "an older version": (put(0, "H", 2, 0x0100), "Version 0x0100, 0x0200 wanted"),
    "an id nobody has": (put(0, "I", 4, 7), "ID not found"),
    "ip mode": (put(0, "B", 8, 1), "Mode 1, 0 (Ethernet) wanted"),
    "no message type": (become(0, message(0)), "control message type 0, 1 to 8 wanted"),
    "an unknown message type": (become(0, message(9)), "control message type 9, 1 to 8 wanted"),
    "a short message": (become(0, message(INIT)[:127]), "a control message of 127 bytes, 128 wanted"),
    "a long message": (become(0, message(INIT) + b"!"), "128 wanted"),
    "INIT with a descriptor": (attach(0, lambda: os.eventfd(0)), "INIT with 1 descriptors, 0 wanted"),
    "ACK first": (become(0, message(ACK)), "ACK while Greeted"),
    "HELLO from a client": (become(0, message(HELLO)), "HELLO while Greeted"),
    "CONNECT first": (become(0, message(CONNECT)), "CONNECT while Greeted"),
    "INIT twice": (become(1, message(INIT, "HI", 0x0200, 0)), "1 descriptors, 0 wanted"),
    "CONNECTED from a client": (become(4, message(CONNECTED)), "CONNECTED while Configuring"),
    "CONNECT without rings": (attach(1, lambda: 0, 0), "ADD_REGION with 0 descriptors, 1 wanted"),
    "a region that is not the first": (put(1, "H", 2, 1), "region index 1, 0 wanted, at most 255"),
    "a region of nothing": (put(1, "Q", 4, 0), "a region of 0 bytes"),
    "a region larger than its memfd": (put(1, "Q", 4, 1 << 24), "16777216 claimed"),
    "a region larger than we map": (put(1, "Q", 4, 1 << 40), "at most"),
    "a region of all addresses": (put(1, "Q", 4, 2**64 - 1), "at most"),
    "a region that is a pipe": (attach(1, a_pipe), "region is not a memfd"),
    "a region that is an eventfd": (attach(1, lambda: os.eventfd(0)), "region is not a memfd"),
    "a region that is a device": (attach(1, lambda: os.open("/dev/zero", os.O_RDWR)), "region is not a memfd"),
    "two descriptors for a region": (attach(1, lambda: os.eventfd(0), 2), "descriptors, 1 wanted"),
    "a ring without descriptor": (attach(2, lambda: 0, 0), "ADD_RING with 0 descriptors, 1 wanted"),
    "a ring woken by a pipe": (attach(2, a_pipe), "ring descriptor is not an eventfd"),
    "a ring woken by a memfd": (attach(2, lambda: os.memfd_create("no")), "ring descriptor is not an eventfd"),
    "a ring that is not the first": (put(2, "H", 4, 1), "ring index 1, 0 wanted, at most 63"),
    "a second ring of one direction": (put(3, "H", 2, 1), "ring index 0, 1 wanted, at most 63"),
    "a ring in no region": (put(2, "H", 6, 1), "ring in region 1, 1 known"),
    "a ring behind its region": (put(2, "I", 8, 0xFFFFFFF8), "ends outside its region"),
    "a ring at an odd place": (put(2, "I", 8, 4), "ring at offset 4, a multiple of 8 wanted"),
    "a ring of one slot": (put(2, "B", 12, 0), "ring of 2^0 slots, 2^1 to 2^14 wanted"),
    "a ring of too many slots": (put(2, "B", 12, 15), "ring of 2^15 slots, 2^1 to 2^14 wanted"),
    "a ring of more slots than a number holds": (put(2, "B", 12, 255), "ring of 2^255 slots"),
    "a ring with private headers": (put(2, "H", 13, 8), "private header of 8 bytes, 0 wanted"),
}


def test_every_wrong_field_of_a_handshake_is_refused_with_a_reason(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim:
        for name, (change, reason) in LIES.items():
            with Client(victim.attacked) as liar:
                with pytest.raises(Refused) as refused:
                    liar.connect(change)
                assert reason in str(refused.value), f"{name}: {refused.value}"
            victim.serves()
        assert victim.counters()["handshakes_refused"] == len(LIES)
        assert victim.counters()["connects"] == 1


def test_a_region_without_the_shrink_seal_is_refused(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked, seal=False) as liar:
        with pytest.raises(Refused, match="region is not sealed: F_SEAL_SHRINK wanted"):
            liar.connect()
        os.ftruncate(liar.memfd, 0)
        victim.serves()


def test_regions_that_add_up_to_too_much_are_refused(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked) as liar:
        os.ftruncate(liar.memfd, 100 << 20)  # sparse: it would cost its size once it is read
        liar.dial()
        liar.control.send(bytes(liar.steps()[0][0]))
        liar.control.expect(ACK)
        for index in range(2):
            liar.control.send(bytes(message(ADD_REGION, "HQ", index, 100 << 20)), liar.memfd)
            liar.control.expect(ACK)
        liar.control.send(bytes(message(ADD_REGION, "HQ", 2, 100 << 20)), liar.memfd)
        with pytest.raises(Refused, match="region of 104857600 bytes beside 209715200: at most 268435456"):
            liar.control.receive()
        victim.serves()


@pytest.mark.parametrize(("theirs", "reason"), [(b"", "Secret required"), (b"guess", "Incorrect secret")])
def test_the_secret_is_asked_for(tmp_path: Path, free_port: FreePort, theirs: bytes, reason: str) -> None:
    with replica(tmp_path, free_port(), extra=",secret=abc123") as victim:
        with Client(victim.attacked, secret=theirs) as liar, pytest.raises(Refused, match=reason):
            liar.connect()
        with Client(victim.attacked, secret=b"abc123").connect() as honest:
            assert victim.station(honest).ask(victim.port, b"hello") == b"hello"
        victim.serves()


def test_a_ring_whose_cookie_is_gone_is_refused(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked) as liar:
        struct.pack_into("<I", liar.memory, liar.into.offset, 0xDEAD)
        with pytest.raises(Refused, match="ring cookie 0xdead, 0x3e31f20 wanted"):
            liar.connect()


def test_a_second_client_is_refused_while_the_first_goes_on(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as first:
        station = victim.station(first)
        with Client(victim.attacked) as second, pytest.raises(Refused, match="Already connected"):
            second.connect()
        assert station.ask(victim.port, b"still here") == b"still here"


def test_death_at_any_step_of_the_handshake_leaves_room_for_the_next(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim:
        for steps in range(6):
            with Client(victim.attacked) as mortal:
                mortal.dial()
                for data, descriptors in mortal.steps()[:steps]:
                    mortal.control.send(bytes(data), *descriptors)
                    mortal.control.receive()
            victim.serves()
            with Client(victim.attacked).connect() as honest:
                assert victim.station(honest).ask(victim.port, b"next") == b"next"


def test_silence_in_the_handshake_ends_and_crowds_nobody_out(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, ExitStack() as stack:
        silent = [stack.enter_context(Client(victim.attacked)) for _ in range(24)]
        for client in silent:
            client.call()
        answers = [client.control.farewell() for client in silent]
        assert "Too many handshakes under way" in answers
        assert set(answers) <= {"Too many handshakes under way", "Handshake not finished within 5 s"}
        victim.serves()


# --- rings and descriptors, we are the client -------------------------------------------------------------------------


def test_every_wrong_descriptor_is_dropped_and_counted(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as liar:
        station = victim.station(liar)
        size = liar.region_bytes
        wrong: dict[str, list[dict[str, int]]] = {
            "rx_bad_descriptor": [
                {"region": 1, "length": 60},
                {"region": 0xFFFF, "length": 60},
                {"length": 0},
                {"length": 60, "offset": size},
                {"length": 60, "offset": size - 59},
                {"length": 60, "offset": 0xFFFFFFFF},
                {"length": 0xFFFFFFFF, "offset": 1},
                {"length": 0xFFFFFFFF},
            ],
            "rx_too_long": [{"length": 65536}, {"length": 2000}, {"length": 1519}],
            "rx_bad_chain": [{"length": 60, "flags": 1}, {"length": 60, "flags": 0xFFFF}],
        }
        for counter, lies in wrong.items():
            for lie in lies:
                before = victim.counters()[counter]
                liar.out.describe(liar.out.head, **lie)
                liar.out.head += 1
                liar.kick()
                victim.window.wait(lambda now, c=counter, b=before: now["transports"]["port0"]["counters"][c] == b + 1)
                victim.serves()
        assert station.ask(victim.port, b"and now the truth") == b"and now the truth"


def test_a_chain_longer_than_any_frame_is_one_drop(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as liar:
        station = victim.station(liar)
        first = liar.out.head
        for index in range(first, first + 32):
            liar.out.describe(index, flags=int(index < first + 31), length=2048, offset=liar.place(liar.out, index))
        liar.out.head = first + 32
        liar.kick()
        victim.window.wait(lambda now: now["transports"]["port0"]["counters"]["rx_too_long"] == 1)
        assert station.ask(victim.port, b"whole") == b"whole"


def test_a_frame_in_pieces_is_put_together(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as peer:
        station = victim.station(peer)
        frame = bytes(station.udp(victim.port, b"in pieces"))
        at, index = peer.place(peer.out, peer.out.head), peer.out.head
        peer.memory[at : at + len(frame)] = frame
        for step, (start, length) in enumerate([(0, 1), (1, 30), (31, len(frame) - 31)]):
            peer.out.describe(index + step, flags=int(step < 2), length=length, offset=at + start)
        peer.out.head = index + 3
        peer.kick()
        assert bytes(station.wait(lambda packet: packet.haslayer("UDP"))["UDP"].payload) == b"in pieces"


@pytest.mark.parametrize("jump", [65, 1000, 32768, 65535])
def test_a_head_that_jumps_ends_the_connection(tmp_path: Path, free_port: FreePort, jump: int) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as liar:
        victim.station(liar)
        liar.out.head += jump
        liar.kick()
        assert "more than 64 slots" in liar.control.farewell()
        assert victim.counters()["violations"] == 1
        assert "more than 64 slots" in victim.link()


def test_offered_buffers_that_lie_end_the_connection(tmp_path: Path, free_port: FreePort) -> None:
    """A frame of ours must not go anywhere but into the peer's own memory."""
    for lie in ({"region": 9, "length": 2048}, {"length": 2048, "offset": 0xFFFFFF00}, {"length": 0}):
        case = tmp_path / str(len(list(tmp_path.iterdir())))
        case.mkdir()
        with attack(case, free_port) as victim, Client(victim.attacked).connect() as liar:
            station = victim.station(liar)
            for index in range(liar.into.slots):
                liar.into.describe(index, **lie)
            station.send(station.udp(victim.port, b"answer into nowhere"))
            assert liar.control.farewell()
            assert victim.counters()["violations"] == 1


def test_an_offer_that_jumps_ends_the_connection(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as liar:
        station = victim.station(liar)
        liar.into.head += 30000
        for _ in range(70):  # what was on offer honestly is used up first
            try:
                station.send(station.udp(victim.port, b"x"))
            except AssertionError:
                liar.out.head = liar.out.tail
        assert "more than 64 slots" in liar.control.farewell()


def test_a_cookie_changed_later_and_a_mapping_of_garbage_harm_nobody(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as liar:
        victim.station(liar)
        liar.memory[:] = os.urandom(liar.region_bytes)
        liar.kick()
        victim.serves()
        liar.memory[: 2 * liar.ring_bytes] = b"\xff" * (2 * liar.ring_bytes)
        liar.kick()
        victim.serves()


# --- eventfds, floods and deaths --------------------------------------------------------------------------------------


def test_a_full_and_blocking_eventfd_hangs_nobody(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as liar:
        station = victim.station(liar)
        with suppress(BlockingIOError):
            os.eventfd_read(liar.wake_fd)
        with suppress(BlockingIOError):
            os.eventfd_write(liar.wake_fd, 2**64 - 2)
        os.set_blocking(liar.wake_fd, True)
        for _ in range(20):
            station.send(station.udp(victim.port, b"wake me"))
            victim.serves()
        victim.window.wait(lambda now: now["transports"]["port0"]["counters"]["tx_udp"] >= 20)


def test_a_peer_that_never_wakes_us_does_not_disturb_the_others(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as mute:
        station = victim.station(mute)
        mute.kick = lambda: None  # type: ignore[method-assign]
        station.send(station.udp(victim.port, b"find me"))
        # A frame that nobody announced is found with the next turn, whoever causes it.
        victim.serves()
        assert bytes(station.wait(lambda packet: packet.haslayer("UDP"))["UDP"].payload) == b"find me"


def test_a_flood_of_frames_leaves_time_for_the_others(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked, log2=10).connect() as flooder:
        station = victim.station(flooder)
        frame = bytes(station.udp(victim.port, b"flood"))
        for index in range(flooder.out.slots):
            at = flooder.place(flooder.out, index)
            flooder.memory[at : at + len(frame)] = frame
            flooder.out.describe(index, length=len(frame), offset=at)
        sent = 0
        for _ in range(50):
            # Everything that was taken is there again at once; replies are never fetched.
            for _ in range(20):
                free = flooder.out.slots - (flooder.out.head - flooder.out.tail & 0xFFFF)
                sent += free
                flooder.out.head += free
                flooder.kick()
            victim.serves()
        found = victim.window.wait(lambda now: now["transports"]["port0"]["counters"]["rx_udp"] >= sent)
        counters = found["transports"]["port0"]["counters"]
        assert counters["rx_frames"] >= sent > 10_000
        # The reply ring has 1024 places; what did not fit is counted.
        assert counters["tx_full"] >= sent - 2 * flooder.into.slots


def test_a_peer_that_dies_with_frames_under_way_is_forgotten(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim:
        for _ in range(20):
            with Client(victim.attacked).connect() as mortal:
                station = victim.station(mortal)
                for _ in range(8):
                    mortal.out.head = mortal.write(bytes(station.udp(victim.port, b"last words"))) + 1
                mortal.kick()
            victim.serves()
        assert victim.window.wait(lambda now: now["transports"]["port0"]["counters"]["disconnects"] == 21)


def test_messages_after_the_handshake_end_the_connection(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim:
        for data in (message(INIT), message(ACK), message(77), message(CONNECT)[:5]):
            with Client(victim.attacked).connect() as liar:
                liar.control.send(bytes(data))
                assert liar.control.farewell() not in ("", "closed")
            victim.serves()


# --- we are the server ------------------------------------------------------------------------------------------------

SERVER_LIES: dict[str, tuple[Change, str]] = {
    "only older versions": (put(0, "I", 34, 0x01000100), "Versions 0x0100 to 0x0100, 0x0200 wanted"),
    "only newer versions": (put(0, "I", 34, 0x03000300), "Versions 0x0300 to 0x0300, 0x0200 wanted"),
    "rings of one slot": (put(0, "B", 44, 0), "rings of one slot offered, 2 or more wanted"),
    "no HELLO": (become(0, message(ACK)), "ACK while AwaitingHello"),
    "a short HELLO": (become(0, message(HELLO)[:100]), "a control message of 100 bytes, 128 wanted"),
    "HELLO with a descriptor": (attach(0, lambda: os.eventfd(0)), "HELLO with 1 descriptors, 0 wanted"),
    "CONNECTED instead of ACK": (become(1, message(CONNECTED)), "CONNECTED while AwaitingAdmission"),
    "HELLO instead of ACK": (become(2, message(HELLO)), "HELLO while AddingRegion"),
    "CONNECT instead of ACK": (become(3, message(CONNECT)), "CONNECT while AddingRing"),
    "an unknown type instead of ACK": (become(4, message(1000)), "control message type 1000, 1 to 8 wanted"),
    "ACK instead of CONNECTED": (become(5, message(ACK)), "ACK while Connecting"),
}


def test_a_lying_server_is_left_and_tried_again(tmp_path: Path, free_port: FreePort) -> None:
    with Server(tmp_path / "attacked.sock") as liar, replica(tmp_path, free_port(), "client") as victim:
        for name, (change, reason) in SERVER_LIES.items():
            with pytest.raises(Refused) as refused:
                liar.accept(change)
                liar.control.receive()
            assert reason in str(refused.value), f"{name}: {refused.value}"
            liar.hang_up()
            victim.serves()
            # A good connection in between makes the next one come at once.
            liar.accept().hang_up()
        liar.accept()
        assert Station(liar, "10.0.0.1", "10.0.0.2").ask(victim.port, b"well again") == b"well again"


def test_a_servers_impossible_indices_end_the_connection(tmp_path: Path, free_port: FreePort) -> None:
    with Server(tmp_path / "attacked.sock") as liar, replica(tmp_path, free_port(), "client") as victim:
        for jump in (1, 5000, 60000):
            liar.accept().offered()
            liar.out.tail = liar.out.head + jump
            liar.kick()
            assert "slots" in liar.control.farewell()
            liar.hang_up()
            victim.serves()
        liar.accept()
        station = Station(liar, "10.0.0.1", "10.0.0.2")
        liar.into.tail += 3000  # it has taken what was never sent
        station.send(station.udp(victim.port, b"x"))
        victim.serves()


def test_a_servers_lies_in_descriptors_are_dropped_and_counted(tmp_path: Path, free_port: FreePort) -> None:
    with Server(tmp_path / "attacked.sock") as liar, replica(tmp_path, free_port(), "client") as victim:
        liar.accept()
        station = Station(liar, "10.0.0.1", "10.0.0.2")
        lies = [{"length": 0}, {"length": 2049}, {"length": 2**32 - 1, "offset": 2**32 - 1}]
        for number, lie in enumerate(lies, 1):
            liar.out.describe(liar.out.tail, **lie)
            liar.out.tail += 1
            liar.kick()
            victim.window.wait(lambda now, n=number: now["transports"]["port0"]["counters"]["rx_bad_descriptor"] == n)
            victim.serves()
        # Where its buffers are is the client's to know: a region and an offset in a descriptor are not even read.
        frame = bytes(station.udp(victim.port, b"ours anyway"))
        index = liar.out.tail
        _, region, _, at = liar.out.descriptor(index)
        liar.memory[at : at + len(frame)] = frame
        liar.out.describe(index, region=region + 5, length=len(frame), offset=at ^ 0xFFFF0000)
        liar.out.tail = index + 1
        liar.kick()
        assert bytes(station.wait(lambda packet: packet.haslayer("UDP"))["UDP"].payload) == b"ours anyway"


def test_a_client_comes_back_to_a_server_that_died(tmp_path: Path, free_port: FreePort) -> None:
    with Server(tmp_path / "attacked.sock") as server, replica(tmp_path, free_port(), "client") as victim:
        before = None
        for _ in range(5):
            server.accept()
            assert Station(server, "10.0.0.1", "10.0.0.2").ask(victim.port, b"hello") == b"hello"
            now = victim.window.look()["descriptors"]
            assert now == (before or now)
            before = now
            server.hang_up()
            victim.serves()
