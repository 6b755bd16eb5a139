"""Ten minutes of connections that come, are served by Python and go, as fast as they can, over memif."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.inspection import Window, in_use
from tests.integration.programs import ROOT, running

SECONDS = 600
SETTLED_AFTER_S = 60
LOOK_EVERY_S = 5
GROWTH_BYTES = 4 << 20
PORTS = 49_152
"""That connections from one address to one place can have."""

SERVER = """
from libvnf import VNF, Fixed
from tests.integration.inspection import open_window

vnf = VNF("b")
open_window(vnf)

@vnf.server("tcp://:5000", framing=Fixed(128))
def echo(conn, request, packet):
    conn.send(packet)
"""

FAILURES = {
    "connections_failed",
    "connections_refused",
    "requests_refused",
    "handler_errors",
    "framing_errors",
    "rx_pool_dry",
    "rx_bad_descriptor",
    "rx_bad_chain",
    "violations",
    "tcp_timeout",
    "tcp_half_open_evicted",
    "tcp_closed_with_data",
    "rx_tcp_reset",
}


def failures(figures: dict[str, Any]) -> dict[str, int]:
    """Everything that went wrong, and every drop."""
    counters = {**figures["core"], **figures["transports"]["data0"]["counters"]}
    wrong = {name for name in counters if name in FAILURES or name.startswith("drop_")}
    # ARP that nobody asked for is no failure: the generator announces itself. Nor is the second acknowledgement of an
    # end that was told twice, when the generator was kept from its cpu for longer than the retransmission timeout.
    wrong.discard("drop_neighbour_ignored")
    if counters["drop_tcp_no_connection"] <= counters["tx_tcp_retransmission"]:
        wrong.discard("drop_tcp_no_connection")
    return {name: counters[name] for name in wrong if counters[name]}


@pytest.mark.soak
def test_ten_minutes_of_short_connections_leave_nothing_behind(tmp_path: Path) -> None:
    socket, window = tmp_path / "m.sock", tmp_path / "window.sock"
    options = ("--transport", f"memif:{socket},address=10.0.0.2/24,name=data0", "--set", f"window={window}")
    with running(tmp_path, SERVER, *options) as program:
        look = Window(window)
        command = [sys.executable, "-m", "libvnf", "load", "tcp://10.0.0.2:5000", "--verify", "--json", "-"]
        command += ["--transport", f"memif:{socket},address=10.0.0.1/24", "--timeout", "5"]
        command += ["--connections", "200", "--requests-per-connection", "1", "--duration", str(SECONDS)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        seen = []
        try:
            while True:
                try:
                    report = json.loads(child.communicate(timeout=LOOK_EVERY_S)[0])
                    break
                except subprocess.TimeoutExpired:
                    seen.append(look.look())
            after = look.wait(lambda now: now["core"]["connections_open"] == 1)
        finally:
            child.kill()
            child.wait()
            look.close()
        program.process.kill()
    assert report["errors"] == {}
    # Every port has been used again, and again.
    assert report["connections_opened"] > 20 * PORTS
    assert failures(after) == {}
    assert in_use(after) == dict.fromkeys(in_use(after), 0)
    settled = seen[SETTLED_AFTER_S // LOOK_EVERY_S]
    assert max(now["resident_bytes"] for now in [*seen, after]) < settled["resident_bytes"] + GROWTH_BYTES
    assert after["blocks"] < settled["blocks"] + 1_000
    assert after["descriptors"] <= settled["descriptors"]
