"""Two ``vnf load`` against each other over memif: one drives TCP, the other answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.peers import DEADLINE_S, Process

SIZE = 64
# So many that only a defect keeps a measured second from having answered them on a busy machine.
FEW = 100


@pytest.fixture
def measure(process: Callable[..., Process], tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """The generator's report, and the line of the responder."""
    path = f"memif:{tmp_path}/a.sock"

    def run(*options: str, addresses: int = 1) -> tuple[dict[str, Any], str]:
        load = [sys.executable, "-m", "libvnf", "load", "--size", str(SIZE), "--transport"]
        server = f"{path},role=server,address=10.0.0.2/16"
        answers = process([*load, server, "--respond", "tcp://:5000"])
        answers.wait_for("responding")
        own = "".join(f",address=10.0.1.{number}/16" for number in range(1, addresses + 1))
        report = tmp_path / "report.json"
        common = ["--verify", "--warmup", "0", "--timeout", "20", "--json", str(report)]
        drives = process([*load, path + own, "tcp://10.0.0.2:5000", *common, *options])
        assert drives.wait(deadline_s=3 * DEADLINE_S) == 0, drives.output
        assert answers.stop() == 0
        return json.loads(report.read_text()), answers.output.splitlines()[-1]

    return run


Measure = Callable[..., tuple[dict[str, Any], str]]


@pytest.mark.parametrize("reset", [[], ["--reset"]], ids=["closed", "reset"])
def test_a_connection_per_request(measure: Measure, reset: list[str]) -> None:
    options = ["--connections", "20", "--requests-per-connection", "1", "--duration", "1"]
    report, answered = measure(*options, *reset)
    assert report["errors"] == {}
    opened = report["connections_opened"]
    assert opened >= report["requests"] > FEW
    assert answered == f"echoed {opened:,} messages over {opened:,} accepted connections"


def test_requests_in_flight_together_share_connections(measure: Measure) -> None:
    options = ["--connections", "8", "--outstanding", "64", "--requests-per-connection", "50", "--duration", "1"]
    report, answered = measure(*options)
    assert report["errors"] == {}
    assert report["requests"] > FEW
    assert report["connections_opened"] * 50 >= report["requests"]
    assert answered.endswith(f" messages over {report['connections_opened']:,} accepted connections")


def test_a_hundred_thousand_connections_from_one_generator(measure: Measure) -> None:
    report, answered = measure("--connections", "100000", "--outstanding", "500", "--duration", "2", addresses=3)
    assert report["errors"] == {}
    assert report["connections_opened"] == 100_000
    assert report["requests"] > FEW
    assert answered.endswith(" messages over 100,000 accepted connections")


def test_a_schedule_is_kept_over_many_connections(measure: Measure) -> None:
    report, _ = measure("--connections", "500", "--rate", "2000", "--duration", "1")
    assert (report["errors"], report["connections_opened"]) == ({}, 500)
    assert report["requests"] + report["unsent"] == 2000


def test_a_closed_port_is_refused_in_one_line(process: Callable[..., Process], tmp_path: Path) -> None:
    load = [sys.executable, "-m", "libvnf", "load", "--transport", f"memif:{tmp_path}/a.sock"]
    load[-1] += ",role=server,address=10.0.0.2/16"
    answers = process([*load, "--respond", "tcp://:5000"])
    answers.wait_for("responding")
    load[-1] = f"memif:{tmp_path}/a.sock,address=10.0.1.1/16"
    drives = process([*load, "tcp://10.0.0.2:9"])
    assert drives.wait() == 2
    assert drives.output.splitlines()[-1] == "Error: tcp://10.0.0.2:9: connection refused"
