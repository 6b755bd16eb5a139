"""AF_XDP where things are not as they should be: one clear line and exit 2 at the start, a counted drop later; and
nothing left on the interface, whatever ended the process.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from scapy.packet import Raw
from scapy.utils import wrpcap

from tests.integration.bridge import NetNS
from tests.integration.cable import OWN, Cable
from tests.integration.programs import inside

pytestmark = pytest.mark.needs("ip", "root", "ethtool")

# Answers a system call with an error number, as a kernel that lacks it does (seccomp(2)), and runs the rest of its
# arguments: number of the call, its first argument (or -1), error number.
WITHOUT = """
import ctypes, os, struct, sys
call, first, errno = map(int, sys.argv[1:4])
code = [(0x20, 0, 0, 0), (0x15, 0, 3, call), (0x20, 0, 0, 16), (0x15, 0, 1, first), (0x06, 0, 0, 0x00050000 | errno)]
if first < 0:
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x00050000 | errno)]
code = b"".join(struct.pack("HBBI", *one) for one in code + [(0x06, 0, 0, 0x7fff0000)])
program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer := ctypes.create_string_buffer(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0, ctypes.get_errno()
os.execvp(sys.argv[4], sys.argv[4:])
"""
SOCKET, BPF, AF_XDP, EAFNOSUPPORT, ENOSYS = 41, 321, 44, 97, 38


@pytest.fixture
def cable(tmp_path: Path, netns: NetNS) -> Cable:
    return Cable(tmp_path, netns, queues=2)


@pytest.mark.parametrize(
    ("transport", "words"),
    [
        (f"af_xdp:eth9,{OWN}", ["there is no interface eth9"]),
        (f"af_xdp:lo,{OWN}", ["lo is not an Ethernet interface"]),
        (f"af_xdp:eth1,{OWN},queue=2", ["queue: 2", "eth1 has queues 0 to 1"]),
        (f"af_xdp:eth1,{OWN},mtu=2000", ["mtu: 2000", "eth1 has an MTU of 1500"]),
        (f"af_xdp:eth1,{OWN},ring_slots=32", ["ring_slots", "'32'", "from 64 to 16384"]),
        (f"af_xdp:eth1,{OWN},ring_slots=100", ["ring_slots", "'100'", "power of two"]),
        (f"af_xdp:eth1,{OWN},frame_bytes=1024", ["frame_bytes", "'1024'", "2048"]),
        (f"af_xdp:eth1,{OWN},zero_copy=yes", ["zero_copy", "the driver of eth1 cannot"]),
        (f"af_xdp:eth1,{OWN},take=sctp:5", ["take", "'sctp:5'"]),
    ],
)
def test_what_cannot_be_is_one_line(cable: Cable, transport: str, words: list[str]) -> None:
    line = cable.refused(transport)
    assert [word for word in words if word not in line] == [], line
    assert cable.attached() is None


def test_an_interface_that_is_down_or_too_large_is_one_line(cable: Cable) -> None:
    cable.near.run("ip", "link", "set", "eth1", "mtu", "9000")
    line = cable.refused(f"af_xdp:eth1,{OWN}")
    assert "an MTU of 9000" in line and "frame_bytes=2048 carries 1774" in line
    assert "frame_bytes=4096 carries 3822" in cable.refused(f"af_xdp:eth1,{OWN},frame_bytes=4096")
    cable.near.run("ip", "link", "set", "eth1", "mtu", "1500", "down")
    assert "eth1 is down: ip link set eth1 up" in cable.refused(f"af_xdp:eth1,{OWN}")


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (["setpriv", "--bounding-set", "-net_raw"], "not permitted: expected root, or CAP_NET_RAW"),
        (["setpriv", "--bounding-set", "-bpf,-sys_admin,-net_admin"], "not permitted: expected root"),
        ([sys.executable, "-c", WITHOUT, SOCKET, AF_XDP, EAFNOSUPPORT], "this kernel has no AF_XDP"),
        ([sys.executable, "-c", WITHOUT, BPF, -1, ENOSYS], "this kernel has no bpf(2)"),
        # Without CAP_IPC_LOCK, and with 1 MiB that may be locked.
        (["prlimit", "--memlock=1048576", "setpriv", "--bounding-set", "-ipc_lock"], "ring_slots: 2048: 8388608 bytes"),
    ],
)
def test_no_privilege_and_no_xdp_in_the_kernel_are_one_line(cable: Cable, prefix: list[Any], words: str) -> None:
    assert words in cable.refused(f"af_xdp:eth1,{OWN}", *map(str, prefix))
    assert cable.attached() is None


def test_an_interface_that_another_program_has_is_left_to_it(cable: Cable, process: Any) -> None:
    with cable.vnf("queue=0"):
        assert "another AF_XDP socket has queue 0 of eth1" in cable.refused(f"af_xdp:eth1,{OWN}")
        assert "another XDP program is attached to eth1" in cable.refused(f"af_xdp:eth1,{OWN},queue=1")
        assert "another XDP program" in cable.refused(f"af_xdp:eth1,{OWN},queue=1,attach=generic")
        assert cable.attached() == "xdp"
    assert cable.attached() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_program_outlives_the_process(cable: Cable, number: signal.Signals) -> None:
    for _ in range(2):  # the next one can begin at once
        with cable.vnf() as program:
            assert cable.attached() == "xdp"
            assert cable.ask(b"hello") == b"hello"
            program.signal(number)
            program.exit()
        # What is closed last by a process that was killed goes a moment later.
        wait = 'while ip link show eth1 | grep -q "prog/xdp"; do :; done'
        cable.near.run("sh", "-c", wait)
        assert " 2 received" in cable.far.run("ping", "-c", "2", "-i", "0.05", "10.0.0.3")


def test_a_link_that_goes_down_and_comes_back_is_announced_again(cable: Cable) -> None:
    with cable.vnf():
        assert cable.ask(b"hello") == b"hello"
        cable.near.run("ip", "link", "set", "eth1", "down")
        cable.wait_link("eth1 is down")
        cable.near.run("ip", "link", "set", "eth1", "up")
        cable.wait_link("up")
        assert cable.ask(b"again") == b"again"
        cable.far.run("ip", "link", "set", "far", "down")
        cable.wait_link("eth1 has no carrier")
        cable.far.run("ip", "link", "set", "far", "up")
        cable.wait_link("up")
        assert cable.ask(b"once more") == b"once more"
        counters = cable.window.counters("port0")
        assert (counters["connects"], counters["disconnects"]) == (3, 2)


def test_a_ring_that_was_full_when_the_link_went_down_is_sent_when_it_is_back(cable: Cable, process: Any) -> None:
    """What comes before it is seen that the interface is down fills the ring with frames that the kernel refuses."""
    capture = cable.path / "in.pcap"
    wrpcap(str(capture), [Raw(b"\2" + bytes(99))] * 1000, linktype=1)
    ports = [f"pcap:{capture},repeat=true", "af_xdp:eth1,take=all,ring_slots=64"]
    ours = process([*inside(cable.near)[:4], sys.executable, "-m", "libvnf", "bridge", *ports])
    ours.wait_for("bridging")
    for _ in range(3):
        cable.near.run("ip", "link", "set", "eth1", "down")
        cable.near.run("ip", "link", "set", "eth1", "up")
        come = "$(cat /sys/class/net/far/statistics/rx_packets)"
        cable.far.run("sh", "-c", f"before={come}; until [ {come} -gt $((before + 1000)) ]; do :; done")


def test_an_interface_removed_under_it_is_used_again_when_it_is_back(cable: Cable) -> None:
    with cable.vnf():
        assert cable.ask(b"hello") == b"hello"
        before = cable.window.look()
        for _ in range(3):
            cable.far.run("ip", "link", "delete", "far")
            cable.wait_link("eth1 is gone")
            cable.connect()
            cable.wait_link("up")
            assert cable.ask(b"again") == b"again"
        after = cable.window.look()
        assert after["descriptors"] == before["descriptors"]
        # Down it is also while the interface that is back has not been brought up.
        counters = after["transports"]["port0"]["counters"]
        assert counters["connects"] == counters["disconnects"] + 1 >= 4


def test_an_interface_that_left_and_came_back_while_nobody_looked_is_opened_again(cable: Cable, netns: NetNS) -> None:
    """In a namespace without others, and so without another number."""
    aside = netns()
    with cable.vnf() as program:
        assert cable.ask(b"hello") == b"hello"
        before = cable.near.run("cat", "/sys/class/net/eth1/ifindex")
        program.signal(signal.SIGSTOP)
        try:
            cable.near.run("ip", "link", "set", "eth1", "netns", aside.name)
            aside.run("ip", "link", "set", "eth1", "netns", cable.near.name)
            cable.near.run("ip", "link", "set", "eth1", "up")
        finally:
            program.signal(signal.SIGCONT)
        assert cable.near.run("cat", "/sys/class/net/eth1/ifindex") == before
        cable.window.wait(lambda now: now["transports"]["port0"]["counters"]["connects"] == 2)
        assert cable.ask(b"again") == b"again"


def test_a_renamed_interface_is_let_go(cable: Cable) -> None:
    with cable.vnf():
        # Linux renames an interface that is up as well (6.2 and later).
        cable.near.run("ip", "link", "set", "eth1", "name", "eth2")
        cable.wait_link("eth1 is gone")
        cable.near.run("ip", "link", "set", "eth2", "name", "eth1")
        cable.wait_link("up")
        assert cable.ask(b"hello") == b"hello"


def test_a_smaller_mtu_of_the_interface_is_kept_to(cable: Cable) -> None:
    with cable.vnf():
        for namespace, device in ((cable.far, "far"), (cable.near, "eth1")):
            namespace.run("ip", "link", "set", device, "mtu", "1400")
        cable.wait_link("up")
        with cable.far.socket(2, 2) as sock:
            sock.connect(("10.0.0.2", 5000))
            # It comes in fragments of 1400, and goes back in such of 1500, as the host was told.
            sock.send(b"x" * 3000)
            counters = cable.window.wait(lambda now: now["transports"]["port0"]["counters"]["tx_too_long"] > 0)
        assert counters["transports"]["port0"]["counters"]["rx_reassembled"] == 1
        assert cable.ask(b"x" * 1300) == b"x" * 1300


def test_what_the_kernel_had_for_a_slow_vnf_is_counted(cable: Cable, process: Any) -> None:
    """Nobody takes frames while the VNF is stopped: a ring of 64 is full soon, and what came on top is no secret."""
    with cable.vnf("ring_slots=64,queue=0,queue=1") as program:
        assert cable.ask(b"hello") == b"hello"
        program.signal(signal.SIGSTOP)
        try:
            with cable.far.socket(2, 2) as sock:
                sock.connect(("10.0.0.2", 5000))
                for _ in range(500):
                    sock.send(b"x")
        finally:
            program.signal(signal.SIGCONT)
        counters = cable.window.wait(lambda now: now["transports"]["port0"]["counters"]["rx_dropped"] > 0)
        port = counters["transports"]["port0"]["counters"]
        assert port["rx_no_buffer"] >= port["rx_dropped"] >= 500 - 2 * 64
        assert cable.ask(b"alive") == b"alive"
