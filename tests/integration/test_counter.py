"""The counter of the examples: two replicas, one of which is killed."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from tests.integration.programs import ROOT, RUN
from tests.peers import Process

COUNTER = ROOT / "examples" / "counter" / "counter.py"
LINES = 400


class Asker(threading.Thread):
    """Sends line after line to one replica, each when the last was answered, until there were enough or it is gone."""

    def __init__(self, port: int, tell_at: int) -> None:
        super().__init__()
        self.port, self.sums, self.asked = port, list[int](), 0
        self.told, self._tell_at = threading.Event(), tell_at

    def run(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
                answers = connection.makefile("rb")
                while self.asked < LINES:
                    self.asked += 1
                    connection.sendall(b"line\n")
                    answer = answers.readline()
                    if not answer:
                        break
                    self.sums.append(int(answer))
                    if len(self.sums) == self._tell_at:
                        self.told.set()
        except ConnectionError:
            pass
        finally:
            self.told.set()


def test_a_replica_that_is_killed_takes_no_count_with_it(
    process: Callable[..., Process], free_port: Callable[[], int], tmp_path: Path
) -> None:
    ports = [free_port(), free_port()]
    store = ["--store", f"redis+embedded://{tmp_path}/state", "--set", "limits.grace_s=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    replicas = [
        process([*RUN, COUNTER, *store, "--set", f"listen=tcp://127.0.0.1:{port}"], env=environment) for port in ports
    ]
    for replica in replicas:
        replica.wait_for(r"^counter: ready in ")
    lost, kept = (Asker(port, LINES // 4) for port in ports)
    lost.start()
    kept.start()
    assert lost.told.wait(60)
    os.kill(replicas[0].pid, signal.SIGKILL)
    lost.join(60)
    kept.join(60)
    assert len(kept.sums) == LINES and LINES // 4 <= len(lost.sums) < LINES
    sums = lost.sums + kept.sums
    assert len(set(sums)) == len(sums), "nothing is counted twice, and no count is lost between the two"
    # What was asked and not answered when it was killed may have been counted, and is the only thing that may.
    assert len(sums) <= max(sums) <= len(sums) + lost.asked - len(lost.sums)
    assert replicas[1].stop() == 0
