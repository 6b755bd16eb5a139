"""``vnf bridge`` as an operator meets it: frames over memif, signals, counters, and what is refused in one line."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from scapy.packet import Raw
from scapy.utils import wrpcap

from tests.integration.memif import Client
from tests.peers import Process

VNF = [sys.executable, "-m", "libvnf"]


def test_several_pairs_pass_frames_and_a_signal_ends_it(tmp_path: Path, process: Callable[..., Process]) -> None:
    paths = [tmp_path / f"{name}.sock" for name in "abcd"]
    report = tmp_path / "report.json"
    ours = process([*VNF, "bridge", *(f"memif:{path}" for path in paths), "--json", str(report)])
    ours.wait_for("bridging")
    with ExitStack() as stack:
        a, b, c, d = (stack.enter_context(Client(path).connect()) for path in paths)
        for number in range(200):
            a.send(bytes([number]) * 60)
            d.send(bytes([number]) * 1500)
            assert b.receive() == bytes([number]) * 60
            assert c.receive() == bytes([number]) * 1500
        b.send(b"back")
        assert a.receive() == b"back"
        ours.send_signal(signal.SIGINT)
        assert ours.wait() == 0
    counters = [port["counters"] for port in json.loads(report.read_text())["ports"]]
    assert [(one["rx_frames"], one["tx_frames"]) for one in counters] == [(200, 1), (1, 200), (0, 200), (200, 0)]
    assert counters[0]["rx_bytes"] == 12_000
    assert not any(path.exists() for path in paths)


def test_a_capture_waits_for_whoever_takes_it(tmp_path: Path, process: Callable[..., Process]) -> None:
    capture, path = tmp_path / "in.pcap", tmp_path / "b.sock"
    frames = [number.to_bytes(2, "big") * 40 for number in range(3000)]
    wrpcap(str(capture), [Raw(frame) for frame in frames], linktype=1)
    ours = process([*VNF, "bridge", f"pcap:{capture}", f"memif:{path}"])
    ours.wait_for("bridging")
    with Client(path).connect() as late:
        assert [late.receive() for _ in frames] == frames
    ours.send_signal(signal.SIGTERM)
    assert ours.wait() == 0


def test_it_ends_by_itself_after_its_duration(tmp_path: Path, process: Callable[..., Process]) -> None:
    ours = process([*VNF, "bridge", f"memif:{tmp_path}/a", f"memif:{tmp_path}/b", "--duration", "0.2", "--verbose"])
    assert ours.wait() == 0
    assert "rx_frames" in ours.output


def test_ports_have_names_where_they_are_configured(tmp_path: Path, process: Callable[..., Process]) -> None:
    (tmp_path / "vnf.toml").write_text(
        "".join(f'[port.{name}]\ntype = "memif"\npath = "{tmp_path}/{name}.sock"\n' for name in ("lan", "wan"))
    )
    command = [*VNF, "bridge", "lan", "wan", "--config", str(tmp_path / "vnf.toml"), "--duration", "0.2", "--json", "-"]
    ours = process(command)
    assert ours.wait() == 0
    assert '"name": "lan"' in ours.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "0 ports: expected pairs"),
        (["memif:/x"], "1 ports: expected pairs, such as memif:"),
        (["memif:/x", "kernel"], "kernel: sockets have no frames to pass on"),
        (["memif:/x", "memfi:/y"], "expected kernel, memif"),
        (["memif:/x,name=a", "memif:/y,name=a"], "two ports are named 'a'"),
        (
            ["memif:/nowhere/at/all/x.sock", "memif:/y"],
            "cannot listen on /nowhere/at/all/x.sock: No such file or directory",
        ),
        (["memif:/x", "memif:/y", "--duration", "0"], "--duration 0: expected more than 0 seconds"),
        (["lan", "wan", "--config", "missing.toml"], "missing.toml: cannot be read"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, process: Callable[..., Process], arguments: list[str], words: str
) -> None:
    ours = process([*VNF, "bridge", *arguments], cwd=tmp_path)
    assert ours.wait() == 2
    assert words in ours.output
    assert len(ours.output.strip().splitlines()) == 1
    assert os.listdir(tmp_path) == []
