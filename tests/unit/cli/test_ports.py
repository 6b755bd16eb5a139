"""``vnf ports`` above the socket: rates and drops out of two answers, and what a person reads."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from libvnf._native import drops
from libvnf.cli import ports as command
from libvnf.cli.ports import per_second, ports, table
from libvnf.control import NoAnswer, Peer
from libvnf.runtime import pause

GUIDE = Path(__file__).parents[3] / "docs/guide/statistics.md"


def answer(at_s: float, frames: int, dropped: int = 0) -> dict[str, Any]:
    counters = {"rx_frames": frames, "rx_bytes": 100 * frames, "tx_frames": 0, "tx_bytes": 0, "rx_pool_dry": dropped}
    port = {"name": "data0", "type": "memif", "place": "memif:b.sock", "link": "up", "addresses": ["10.0.0.2/24"]}
    kernel = {"name": "kernel", "type": "kernel", "place": "kernel", "counters": {"connects": 0}, "drops": {}}
    core = {"messages_in": frames, "messages_out": 0, "connections_open": 2, "drop_paused": dropped}
    return {
        "vnf": "b",
        "pid": 7,
        "up_s": 150.0,
        "at_s": at_s,
        "ports": [{**port, "counters": counters, "drops": {"rx_pool_dry": dropped}}, kernel],
        "core": core,
        "drops": {"drop_paused": dropped},
    }


def test_rates_are_by_the_clock_of_the_vnf() -> None:
    told = per_second(answer(10.0, 1000, 5), answer(12.0, 5000, 9))
    assert told["ports"][0]["rx_frames_per_s"] == 2000
    assert told["ports"][0]["drops"] == {"rx_pool_dry": 9}
    assert told["ports"][0]["drops_per_s"] == {"rx_pool_dry": 2}
    assert told["messages_in_per_s"] == 2000
    assert (told["drops"], told["drops_per_s"]) == ({"drop_paused": 9}, {"drop_paused": 2})
    assert "rx_frames_per_s" not in told["ports"][1]


def test_a_port_that_is_new_has_rates_from_nothing() -> None:
    before = answer(1.0, 0)
    before["ports"] = []
    assert per_second(before, answer(2.0, 10))["ports"][0]["rx_frames_per_s"] == 10


def test_the_table_reads_so() -> None:
    told = per_second(answer(10.0, 1000), answer(11.0, 2_001_000, 1234))
    assert table(told) == (
        "b (pid 7): up 2 min, 2 connections, 2,000,000 messages/s in, 0 out\n"
        "  port         rx/s  tx/s  rx bit/s  tx bit/s  place         addresses    link\n"
        "  data0   2,000,000     0     1.6 G         0  memif:b.sock  10.0.0.2/24  up\n"
        "  kernel                                       kernel\n"
        "\n"
        "  dropped by  why          packets  per s\n"
        "  data0       rx_pool_dry    1,234  1,234\n"
        "  b           drop_paused    1,234  1,234"
    )


def test_nothing_a_peer_says_steers_the_terminal() -> None:
    told = answer(1.0, 0)
    told["ports"][0] |= {"link": "peer: \x1b[2J\r\u202egone", "peer": "\x07x", "drops": {"\x1b]0;x\nrx_full": 1}}
    told |= {"vnf": "b\x1b[31m\n", "pid": "\x07"}
    shown = table(per_second(told, told))
    assert "peer: ?[2J??gone, ?x" in shown and "?]0;x?rx_full" in shown and "b?[31m? (pid ?)" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_one_long_text_does_not_widen_every_row_without_end() -> None:
    told = answer(1.0, 0)
    told["ports"] = [{**told["ports"][0], "name": f"p{number}"} for number in range(1000)]
    told["ports"][0]["place"] = "x" * 500_000
    assert len(table(per_second(told, told))) < 1_000_000


def test_every_counter_that_the_guide_says_drops_is_one() -> None:

    text = GUIDE.read_text().split("## transports: a port\n")[1].split("\n## transports: captured")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)]
    told = {name: "dropped" in row[1] for row in rows for name in re.findall("`([^`]+)`", row[0])}
    assert sum(told.values()) >= 3
    missed = [name for name, says in told.items() if says and not drops({name: 1})]
    assert missed == []
    assert [name for name in told if name.startswith("drop_") and not drops({name: 1})] == []
    wrong = (
        "capture_lost",
        "rx_no_buffer",
        "rx_cut",
        "rx_frames",
        "kicks",
        "connects",
        "tcp_timeout",
        "rx_reassembled",
        "tx_tcp_retransmission",
        "flows_open",
    )
    assert drops(dict.fromkeys(wrong, 1)) == {}
    assert drops({"drop_paused": 0, "tx_full": 2, "rx_frames": 3}) == {"tx_full": 2}


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, *peers: Peer) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(command, "find", lambda wanted="": [p for p in peers if wanted in ("", p.name, str(p.pid))])
        yield


class Answering(Peer):
    def ask(self, question: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        return answer(1.0, 0)


class Foreign(Peer):
    def ask(self, question: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        return {"ports": [{"name": 7}]}


class Fickle(Peer):
    """Says another thing each time, all of it numbers that no clock and no sum fits."""

    said = 0

    def ask(self, question: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        Fickle.said += 1
        told = answer(1.0, 0)
        told["ports"][0]["counters"]["tx_full"] = "x"
        return told if Fickle.said == 1 else answer(2.0, 0) | {"drops": {"drop_paused": 10**400}}


class Silent(Peer):
    def ask(self, question: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        raise NoAnswer(f"{self} does not answer")


def test_one_that_does_not_answer_is_named_and_the_others_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Answering("b", 7, Path("b")), Silent("s", 8, Path("s")), Foreign("f", 9, Path("f"))
    with running(monkeypatch, *peers):
        done = CliRunner().invoke(ports, ["--json", "--interval", "0.1"])
    foreign = "f (pid 9) answers in words that this version of vnf does not know\n"
    assert (done.exit_code, done.stderr) == (1, "s (pid 8) does not answer\n" + foreign)
    assert [told["vnf"] for told in json.loads(done.stdout)] == ["b"]


def test_one_whose_answers_do_not_fit_together_is_named_and_the_others_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(monkeypatch, Fickle("f", 9, Path("f")), Answering("b", 7, Path("b"))):
        done = CliRunner().invoke(ports, ["--interval", "0.1"])
    assert (done.exit_code, done.stderr) == (1, "f (pid 9) answers in words that this version of vnf does not know\n")
    assert done.stdout.startswith("b (pid 7)")


def test_a_name_that_does_not_run_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(monkeypatch, Answering("b", 7, Path("b"))):
        done = CliRunner().invoke(ports, ["c"])
    line = "c: no VNF of that name or pid runs here; running: b (pid 7)\n"
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", line)


def test_where_nothing_runs_the_list_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(monkeypatch):
        assert CliRunner().invoke(ports, ["--json"]).stdout == "[]\n"
        done = CliRunner().invoke(ports, [])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "no VNF runs here\n")


def test_a_bridge_has_ports_alone() -> None:
    told = answer(1.0, 0) | {"vnf": "bridge", "core": {}, "drops": {}}
    assert table(per_second(told, told)).splitlines()[0] == "bridge (pid 7): up 2 min"


def test_where_nothing_runs_a_watch_waits_before_it_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def third(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    with running(monkeypatch):
        monkeypatch.setattr(command, "pause", third)
        done = CliRunner().invoke(ports, ["--watch", "--json"])
    assert (done.exit_code, done.stdout, waits) == (0, "[]\n[]\n", [1.0, 1.0, 1.0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_on_the_way_into_a_pause_ends_it(number: signal.Signals) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        signal.pthread_kill(threading.get_ident(), number)
        with pytest.raises(KeyboardInterrupt):
            pause(3600)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
