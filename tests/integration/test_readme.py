"""The first thing a reader does: save the file, type the commands."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from libvnf import VNF, VNFError
from libvnf.config import Config, parse_transport
from libvnf.packet import TCP, UDP, Ethernet, IPv4, build
from tests.byhand import by_hand
from tests.integration.pages import ROOT, argv, blocks, commands
from tests.peers import Process

README = "README.md"


def answered(command: list[str], cwd: Path) -> int:
    """Runs ``vnf load`` until it has measured a little; how many requests were answered, of which none wrongly."""
    done = subprocess.run(
        [*command, "--duration", "0.2", "--warmup", "0", "--json", "-"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["errors"] == {}
    return int(report["requests"])


@pytest.mark.parametrize("transport", ["kernel", "memif"])
def test_the_first_screen_runs_as_it_says(
    transport: str, process: Callable[..., Process], free_port: Callable[[], int], tmp_path: Path
) -> None:
    source, _ = blocks(README, "python")
    (tmp_path / "b.py").write_text(source)
    run, load = commands(README)[:2] if transport == "kernel" else commands(README)[2:4]
    places = {":5000": f":{free_port()}", ":6000": f":{free_port()}"}
    listen, c = places[":5000"], places[":6000"]
    settings = ["--set", f"listen=udp://{listen}"]
    if transport == "kernel":
        settings += ["--set", f"c=udp://127.0.0.1{c}"]
    vnf = process([*argv(run, places), *settings], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    vnf.wait_for(r"^b: ready in ")
    assert answered(argv(load, places), tmp_path) > 0
    assert vnf.stop() == 0


async def test_the_filter_of_the_second_screen_filters() -> None:
    _, source = blocks(README, "python")
    module = types.ModuleType("filter")
    exec(compile(source, "filter", "exec"), module.__dict__)
    web, other, question = (frame(TCP(50_000, 443)), frame(TCP(50_000, 22)), frame(UDP(50_000, 22)))
    async with by_hand(module.vnf, "inside", "outside") as hand:
        assert hand.give("inside", other) == {"outside": [other]}
        assert hand.give("outside", web, other, question) == {"inside": [web, question]}


def frame(layer: TCP | UDP) -> bytes:
    macs = Ethernet("02:00:00:00:00:01", "02:00:00:00:00:02")
    return build(macs, IPv4("10.0.0.1", "10.0.0.2"), layer, payload=b"hello")


def refused(what: str, tmp_path: Path) -> str:
    """Does what a row of the table of things to come names; the error it gets."""
    vnf = VNF("b", program=False)
    words = re.findall("`([^`]+)`", what)
    (tmp_path / "vnf.toml").write_text("")
    tried: list[Callable[[], object]] = []
    if "memif" in what:
        tried = [lambda: start_on_memif("tcp://:5000", tmp_path)]
    elif "sctp" in what:
        tried = [lambda: vnf.server("sctp://:1")]
    elif "replicas" in what:
        files = ["[vnf.b]\nreplicas = 3", '[vnf.b]\nserves = "tcp://:1"', "[lb]", "[cluster]"]
        assert len(files) == len(words)
        tried = [lambda text=text: Config.read(file_of(text, tmp_path), environment={}) for text in files]
    assert tried, what
    said = []
    for attempt in tried:
        with pytest.raises(VNFError) as error:
            attempt()
        assert "\n" not in str(error.value)
        said.append(str(error.value))
    return "\n".join(said)


def file_of(text: str, tmp_path: Path) -> str:
    (tmp_path / "vnf.toml").write_text(text + "\n")
    return str(tmp_path / "vnf.toml")


def start_on_memif(url: str, tmp_path: Path) -> None:
    vnf = VNF("b", program=False)
    vnf.server(url)(lambda conn, request, packet: None)
    port = parse_transport(f"memif:{tmp_path}/b.sock,address=10.0.0.2/24", {})
    asyncio.run(vnf.start([port]))


ROWS = re.findall(r"^\| (`.*) \| `(.*)` \|$", (ROOT / README).read_text(), re.MULTILINE)


@pytest.mark.parametrize(("what", "answer"), ROWS)
def test_what_is_not_there_yet_says_so(what: str, answer: str, tmp_path: Path) -> None:
    wanted = ".*".join(re.escape(part) for part in answer.split("…"))
    for line in refused(what, tmp_path).splitlines():
        assert re.search(wanted, line), line


def test_the_table_of_things_to_come_is_read() -> None:
    assert any("sctp" in what for what, _ in ROWS)
