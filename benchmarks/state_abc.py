"""Rows of ``state.py``: the chain's B with state over memif, beside B without and a uvloop program with redis-py.

A connection per request, and per request a user's count is read and put again, of 10,000 users. B is alone on cpu 1; the
store's masters are on cpu 0, with A and C. With ``write_through`` the client's native thread is on B's cpu too.
"""

from __future__ import annotations

import socket
from pathlib import Path

from harness import EXAMPLES, Results, Side, best_class, free_ports, median, peer, rounds, running, vnf

from tests.redis_cluster import RedisCluster

CLAIM = "ABC with state"
LEVELS = ("local", "write_back", "write_through")
CPU_GOAL = 1 / 1.25
"""Processor time of B's loop: a quarter more than without state."""
STORED_GOAL = 8.0
"""Requests whose state is stored before C is asked, against redis-py."""
SIZE = 128


def measure(results: Results, masters: RedisCluster, quick: bool, scratch: Path) -> None:
    count, duration_s = (2, 0.4) if quick else (7, 1.0)
    files = [("b.py", [])] + [("b_state.py", [f"--set=durability={level}"]) for level in LEVELS]
    memifs = [f"memif:{scratch}/abc{number}.sock" for number in range(len(files))]
    to = "tcp://10.0.0.3:5000"
    commands = [
        vnf(
            EXAMPLES / "abc" / file,
            *options,
            f"--transport={memif},address=10.0.0.2/24",
            f"--store={masters.url}?ns=abc{number}",
            listen="tcp://:5000",
            c=to,
        )
        for number, ((file, options), memif) in enumerate(zip(files, memifs, strict=True))
    ]
    listen, c = free_ports(2, socket.SOCK_STREAM)
    commands.append(peer("tcp_redis.py", listen, c, SIZE, masters.nodes[0].port))
    with running(*commands) as programs:
        for n in (100,) if quick else (100, 1000):
            load = f"--connections {n} --requests-per-connection 1"
            loads = [
                f"tcp://10.0.0.2:5000 --respond {to} {load} --transport {memif},address=10.0.0.1/24,address=10.0.0.3/24"
                for memif in memifs
            ]
            loads.append(f"tcp://127.0.0.1:{listen} --respond tcp://127.0.0.1:{c} {load} --reset")
            names = ("b.py", *LEVELS, "redis-py")
            sides = [Side(name, program, to) for name, program, to in zip(names, programs, loads, strict=True)]
            rounds(sides, count, duration_s)
            without, *with_state, redis_py = sides
            for side in with_state:
                loop(results, f"{side.name}, loop cpu per request, {n:,} outstanding", side, without)
            results.compare(CLAIM, f"write_through, {n:,} outstanding", with_state[-1], redis_py, STORED_GOAL)


def loop(results: Results, case: str, ours: Side, without: Side) -> None:
    kind = best_class(ours, without)
    mine, theirs = (median(side, lambda sample: sample.loop_us, kind) for side in (ours, without))
    rates = [round(median(side, lambda sample: sample.rate, kind)) for side in (ours, without)]
    details = {"class": kind or "mixed", "rate": rates, "errors": sum(sample.errors for sample in ours.samples)}
    results.add(CLAIM, case, mine, without.name, theirs, "µs", CPU_GOAL, less_is_better=True, **details)
