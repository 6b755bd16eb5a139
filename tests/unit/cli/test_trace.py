"""``vnf trace`` above the socket: options down, lines up."""

from __future__ import annotations

import itertools
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from libvnf.cli import ports
from libvnf.cli.trace import lines, told, trace
from libvnf.control import Peer, Refused

IN: dict[str, Any] = {
    "port": "data0",
    "bytes": 98,
    "kinds": ["ipv4", "udp"],
    "src_mac": "02:00:00:00:00:01",
    "dst_mac": "02:00:00:00:00:02",
    "ethertype": 0x0800,
    "src_ip": "10.0.0.1",
    "dst_ip": "10.0.0.2",
    "protocol": 17,
    "src_port": 4000,
    "dst_port": 5000,
}
OUT = IN | {"src_ip": "10.0.0.2", "dst_ip": "10.0.0.1", "src_port": 5000, "dst_port": 4000, "became": "sent"}
PACKET: dict[str, Any] = {
    "at_s": 0.25,
    "ns": 5117,
    "frame": IN,
    "notes": ["handler echo"],
    "counters": {"data0": {"rx_frames": 1, "rx_udp": 1, "drop_paused": 3}, "": {"messages_in": 1}},
    "out": [OUT, OUT | {"port": "data1", "became": "full"}],
}


def test_a_packet_reads_so() -> None:
    [first, *rest] = lines(PACKET, 7, "b")
    assert first.startswith("7    ") and first.endswith(".250000  data0  10.0.0.1:4000 > 10.0.0.2:5000 UDP 98 bytes")
    assert rest == [
        "       handler echo",
        "       data0: rx_udp drop_paused +3",
        "       b: messages_in",
        "       > data0  10.0.0.2:5000 > 10.0.0.1:4000 UDP 98 bytes",
        "       > data1  10.0.0.2:5000 > 10.0.0.1:4000 UDP 98 bytes  not sent: full",
        "       5117 ns",
    ]


def test_one_that_the_port_dropped_says_so() -> None:
    packet = PACKET | {"frame": {"port": "data0", "bytes": 0, "kinds": ["malformed"]}, "notes": [], "out": []}
    assert next(lines(packet, 1, "b")).endswith("  data0  dropped before it could be read")


NO_PORTS = {key: value for key, value in IN.items() if not key.endswith("_port")}
LINK = {key: value for key, value in NO_PORTS.items() if not key.endswith("_ip") and key != "protocol"}


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (IN | {"tcp_flags": 0x12, "protocol": 6}, "10.0.0.1:4000 > 10.0.0.2:5000 TCP SYN ACK 98 bytes"),
        (IN | {"teid": 7}, "10.0.0.1:4000 > 10.0.0.2:5000 GTP-U TEID 0x7 98 bytes"),
        (IN | {"vlan": 7}, "vlan 7 10.0.0.1:4000 > 10.0.0.2:5000 UDP 98 bytes"),
        (IN | {"src_ip": "fd00::1", "dst_ip": "fd00::2"}, "[fd00::1]:4000 > [fd00::2]:5000 UDP 98 bytes"),
        (NO_PORTS | {"protocol": 1, "icmp": [8, 0]}, "10.0.0.1 > 10.0.0.2 ICMP echo 98 bytes"),
        (NO_PORTS | {"protocol": 58, "icmp": [2, 0]}, "10.0.0.1 > 10.0.0.2 ICMP too big 98 bytes"),
        (NO_PORTS | {"protocol": 1, "icmp": [42, 1]}, "10.0.0.1 > 10.0.0.2 ICMP type 42 code 1 98 bytes"),
        (NO_PORTS | {"protocol": 89}, "10.0.0.1 > 10.0.0.2 protocol 89 98 bytes"),
        (NO_PORTS | {"kinds": ["ipv4", "fragment"]}, "10.0.0.1 > 10.0.0.2 UDP fragment 98 bytes"),
        (LINK | {"arp": 1, "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2"}, "ARP who has 10.0.0.2 tell 10.0.0.1 98 bytes"),
        (
            LINK | {"arp": 2, "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2"},
            "ARP 10.0.0.1 is at 02:00:00:00:00:01 98 bytes",
        ),
        (LINK | {"arp": 9, "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2"}, "ARP operation 9 98 bytes"),
        (LINK | {"ethertype": 0x88CC}, "02:00:00:00:00:01 > 02:00:00:00:00:02 ethertype 0x88cc 98 bytes"),
        (LINK | {"kinds": ["malformed"]}, "02:00:00:00:00:01 > 02:00:00:00:00:02 IPv4 malformed 98 bytes"),
        ({"port": "q", "bytes": 3, "kinds": ["malformed"]}, "? > ? ethertype 0x0000 malformed 3 bytes"),
    ],
)
def test_headers_in_one_line(frame: dict[str, Any], words: str) -> None:
    assert told(frame) == words


class Traced(Peer):
    """Answers with two packets."""

    asked: ClassVar[dict[str, Any]] = {}

    def listen(self, question: str, timeout_s: float | None = 5.0, **fields: Any) -> Iterator[dict[str, Any]]:
        Traced.asked = {"ask": question, "timeout_s": timeout_s, **fields}
        if fields["match"].get("port") == "x":
            raise Refused("b (pid 7): there is no port x")
        yield PACKET
        yield PACKET | {"notes": ["handler \x1b[2J"]}
        yield {"frames": 9, "missing": 3}


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*args: str, running: int = 1) -> Result:
        peers = [Traced("b", 7 + number, Path("b")) for number in range(running)]
        monkeypatch.setattr(ports, "find", lambda wanted="": [p for p in peers if wanted in ("", p.name, str(p.pid))])
        monkeypatch.setattr("libvnf.cli.trace.find", lambda: peers)
        return CliRunner().invoke(trace, args)

    return run


def test_options_go_down_as_the_engine_takes_them(invoke: Any) -> None:
    options = "--count 5 --port data0 --ip 10.0.0.0/8 --protocol udp --src-port 0 --vlan 0 --dropped".split()
    done = invoke("b", *options)
    assert done.exit_code == 0
    assert Traced.asked == {
        "ask": "trace",
        "timeout_s": None,
        "count": 5,
        "match": {"port": "data0", "ip": "10.0.0.0/8", "protocol": 17, "src_port": 0, "vlan": 0, "dropped": True},
    }
    assert done.stderr == "3 packets of 5 did not come\n"
    assert "handler ?[2J" in done.stdout
    assert invoke().exit_code == 0
    assert Traced.asked["match"] == {}


@pytest.mark.parametrize(
    ("word", "match"), [("gtpu", {"kind": "gtpu"}), ("89", {"protocol": 89}), ("icmp6", {"protocol": 58})]
)
def test_a_protocol_is_a_word_or_a_number(invoke: Any, word: str, match: dict[str, Any]) -> None:
    invoke("--protocol", word)
    assert Traced.asked["match"] == match


def test_json_is_a_line_per_packet(invoke: Any) -> None:
    done = invoke("--json")
    assert [json.loads(line)["ns"] for line in done.stdout.splitlines()] == [5117, 5117]


@pytest.mark.parametrize(
    ("args", "running", "words"),
    [
        (["--protocol", "x"], 1, "--protocol x: expected icmp, tcp, udp"),
        (["--port", "x"], 1, "b (pid 7): there is no port x\n"),
        (["c"], 1, "c: no VNF of that name or pid runs here; running: b (pid 7)\n"),
        ([], 2, "vnf trace: name one VNF, by name or pid: running: b (pid 7), b (pid 8)\n"),
        ([], 0, "vnf trace: name one VNF, by name or pid: running: none\n"),
        (["--count", "0"], 1, "Usage: "),
    ],
)
def test_a_mistake_is_told(invoke: Any, args: list[str], running: int, words: str) -> None:
    done = invoke(*args, running=running)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_trace_that_waits(invoke: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    def listen(*args: Any, **fields: Any) -> Iterator[dict[str, Any]]:
        signal.pthread_kill(threading.get_ident(), number)
        yield {"frames": 0, "missing": 10}

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Traced, "listen", listen)
    done = invoke("b")
    assert (done.exit_code, done.output) == (130, "")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "said",
    [
        {"missing": "\x1b[2J"},
        {},
        PACKET | {"at_s": 1e300},
        PACKET | {"ns": 10**400},
    ],
)
def test_what_no_vnf_says_is_one_line(invoke: Any, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]) -> None:
    monkeypatch.setattr(Traced, "listen", lambda *args, **more: iter([said]))
    done = invoke()
    line = "b (pid 7) answers in words that this version of vnf does not know\n"
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", line)


def test_no_more_is_shown_than_was_asked_for(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Traced, "listen", lambda *args, **more: itertools.repeat(PACKET))
    done = invoke("--count", "3", "--json")
    assert (done.exit_code, done.stdout.count("\n")) == (2, 3)
