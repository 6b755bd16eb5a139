"""``vnf load`` above the native function: options down, progress and table up."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from libvnf import _native
from libvnf.cli.load import ProgressLine, load

REPORT: dict[str, Any] = {
    "requests": 1_000_000,
    "errors": {},
    "seconds": 2.0,
    "rate": 500_000.0,
    "mean_us": 12.5,
    "p50_us": 10.0,
    "p90_us": 20.0,
    "p99_us": 30.0,
    "p999_us": 1234.5,
    "max_us": 5000.0,
    "unsent": 0,
    "connections_opened": 4,
    "connections_accepted": 0,
    "echoed": 7,
    "cpu_seconds": 1.5,
}

PROGRESS = {
    "phase": "measuring",
    "seconds": 1.5,
    "requests": 10,
    "rate": 123456.0,
    "errors": 3,
    "p50_us": 10.0,
    "p99_us": 30.0,
}


class Native:
    """Stands for ``_native.run_load``."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.report = dict(REPORT)
        self.error: Exception | None = None

    def run(self, options: dict[str, Any], progress: Any) -> dict[str, Any]:
        self.options = options
        if self.error is not None:
            raise self.error
        return self.report


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Native:
    fake = Native()
    monkeypatch.setattr(_native, "run_load", fake.run, raising=False)
    return fake


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(load, arguments)


def test_every_option_reaches_the_native_function_under_its_documented_name(native: Native) -> None:
    result = invoke(
        *"udp://10.0.0.2:5000 --respond udp://10.0.0.3:5000 --respond tcp://:1 --connections 4".split(),
        *"--outstanding 64 --requests-per-connection 5 --rate 1e4 --size 64 --id 0:8 --verify".split(),
        *"--duration 2 --warmup 0.5 --timeout 0.1 --reset --cpu 1 --capture a.pcapng".split(),
        *"--transport memif:/run/b.sock,address=10.0.0.1/24".split(),
    )
    assert result.exit_code == 0, result.output
    assert native.options == {
        "endpoint": "udp://10.0.0.2:5000",
        "respond": ["udp://10.0.0.3:5000", "tcp://:1"],
        "transport": "memif:/run/b.sock,address=10.0.0.1/24",
        "connections": 4,
        "outstanding": 64,
        "requests_per_connection": 5,
        "rate": 10000.0,
        "size": 64,
        "id": "0:8",
        "verify": True,
        "duration_s": 2.0,
        "warmup_s": 0.5,
        "timeout_s": 0.1,
        "reset": True,
        "cpu": 1,
        "capture": "a.pcapng",
    }


def test_streams_over_a_port_have_as_many_addresses_as_they_need(native: Native) -> None:
    transport = "memif:/run/b.sock,address=10.0.0.1/24,address=10.0.0.4/24,address=10.0.0.5/24"
    result = invoke("tcp://10.0.0.2:5000", "--transport", transport, "--connections", "100000")
    assert result.exit_code == 0, result.output
    assert (native.options["transport"], native.options["connections"]) == (transport, 100_000)
    assert "TCP and UDP" in " ".join(invoke("--help").output.split())


def test_what_is_not_given_is_none_or_the_shown_default(native: Native) -> None:
    assert invoke("tcp://:5000").exit_code == 0
    optional = ("outstanding", "requests_per_connection", "rate", "id", "cpu", "capture")
    assert [native.options[key] for key in optional] == [None] * 6
    assert (native.options["transport"], native.options["connections"], native.options["size"]) == ("kernel", 1, 128)


def test_the_table_shows_rate_quantiles_and_failures_by_name(native: Native) -> None:
    native.report |= {"errors": {"timeout": 12, "mismatch": 1}, "unsent": 5}
    output = invoke("tcp://:5000").stdout
    for text in ("500,000 requests/s", "p99.9", "1,234.5", "12  timeout", "1  mismatch", "5  unsent"):
        assert text in output


def test_a_responder_alone_tells_what_it_echoed(native: Native) -> None:
    result = invoke("--respond", "udp://:5000")
    assert (result.exit_code, result.stdout) == (0, "echoed 7 messages over 0 accepted connections\n")
    assert native.options["endpoint"] is None


@pytest.mark.parametrize("error", [ValueError("size 0: expected more"), ConnectionRefusedError("tcp://x: refused")])
def test_a_refusal_is_one_line_and_exit_code_2(native: Native, error: Exception) -> None:
    native.error = error
    result = invoke("tcp://:5000")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: {error}"


def test_json_is_the_report(native: Native, tmp_path: Path) -> None:
    result = invoke("tcp://:5000", "--json", "-")
    assert json.loads(result.stdout) == REPORT
    assert "requests/s" in result.stderr
    target = tmp_path / "report.json"
    assert "requests/s" in invoke("tcp://:5000", "--json", str(target)).stdout
    assert json.loads(target.read_text()) == REPORT
    refused = invoke("tcp://:5000", "--json", str(tmp_path))
    assert (refused.exit_code, refused.stderr.splitlines()[-1]) == (2, f"Error: --json {tmp_path}: Is a directory")


def test_no_answer_at_all_is_exit_code_1(native: Native) -> None:
    native.report |= {"requests": 0, "errors": {"timeout": 9}}
    assert invoke("udp://:5000").exit_code == 1


def test_an_interrupt_ends_the_run_and_prints_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bool] = []

    def run(options: dict[str, Any], progress: Any) -> dict[str, Any]:
        answers.append(progress(PROGRESS))
        os.kill(os.getpid(), signal.SIGINT)
        answers.append(progress(PROGRESS))
        return REPORT

    monkeypatch.setattr(_native, "run_load", run, raising=False)
    before = signal.getsignal(signal.SIGINT)
    result = invoke("tcp://:5000")
    assert (answers, result.exit_code) == ([False, True], 0)
    assert "500,000 requests/s" in result.stdout
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_is_a_line_per_second_where_there_is_no_terminal() -> None:
    stream, now = io.StringIO(), 0.0
    line = ProgressLine(stream, lambda: now)
    for _ in range(31):
        line.show(PROGRESS)
        now += 0.1
    line.end()
    lines = stream.getvalue().splitlines()
    assert len(lines) in (2, 3)
    assert "measuring" in lines[0] and "123,456 /s" in lines[0] and "errors 3" in lines[0]


def test_progress_on_a_terminal_rewrites_one_line_and_leaves_none() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    line = ProgressLine(stream, lambda: 0.0)
    line.show(PROGRESS)
    line.show(PROGRESS | {"phase": "responding"})
    line.end()
    text = stream.getvalue()
    assert "\n" not in text and text.count("\r") == 3 and text.endswith("\r\x1b[K")
