"""The guide is true: its tables name everything the software has, and no more; its programs and recipes run."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import libvnf
from libvnf import VNF, ConfigError, Limits, api, write_through
from libvnf._native import StoreClient
from libvnf.cli import main
from libvnf.config import PORT_KEYS, Config, parse_transport
from libvnf.testing import Network
from tests.byhand import by_hand
from tests.integration.pages import ROOT, argv, blocks, commands
from tests.peers import Process

GUIDE = Path("docs/guide")
PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / GUIDE).glob("*.md"))


def rows(page: str, heading: str | None = None) -> Iterator[list[str]]:
    """The rows of a page's tables, or of those under ``heading``, as the names and values in their cells."""
    text = (ROOT / GUIDE / page).read_text()
    if heading is not None:
        text = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    for line in re.findall(r"^\| (.*) \|$", text, re.MULTILINE):
        yield [cell.strip() for cell in line.split(" | ")]


def names(page: str, heading: str | None = None) -> set[str]:
    """What stands in code style in the first column."""
    return {name for row in rows(page, heading) for name in re.findall("`([^`]+)`", row[0])}


def command_of(name: str) -> click.Command:
    """``vnf NAME``."""
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def subcommands(name: str) -> dict[str, click.Command]:
    """``vnf NAME …``; none where it has none."""
    command = command_of(name)
    return dict(command.commands) if isinstance(command, click.Group) else {}


# --- tables -----------------------------------------------------------------------------------------------------------


def test_every_limit_is_in_the_guide_with_its_default() -> None:
    told = {row[0].strip("`"): row[1] for row in rows("limits.md") if row[0].startswith("`") and len(row) == 3}
    assert told == {
        spec.name: f"{getattr(Limits(), spec.name):g}"
        if spec.name.endswith("_s")
        else str(getattr(Limits(), spec.name))
        for spec in fields(Limits)
    }


def test_every_counter_is_in_the_guide_and_no_other(tmp_path: Path) -> None:
    async def counted() -> Any:
        vnf = VNF("b", program=False)
        vnf.server("udp://:0?port=kernel")(lambda conn, request, packet: None)
        vnf.client("udp://10.0.0.9:9?port=data0")
        vnf.table("t", key=str, value=int)
        vnf.table("shared", key=str, value=int, durability=write_through)
        ports = [f"memif:{tmp_path}/b.sock,address=10.0.0.2/24,name=data0", "kernel"]
        await vnf.start([parse_transport(port, {}) for port in ports])
        try:
            return vnf.statistics()
        finally:
            await vnf.close()

    found = asyncio.run(counted())
    kernel, port = found["transports"]["kernel"], found["transports"]["data0"]
    assert names("statistics.md", "core") == set(found["core"])
    assert names("statistics.md", "transports: kernel") == set(kernel)
    assert names("statistics.md", "transports: a port") == set(port["counters"])
    assert names("statistics.md", "engine") == set(port["engine"])
    assert names("statistics.md", "flows") == set(found["flows"])
    assert names("statistics.md", "tables") == set(found["tables"]["shared"])
    client = StoreClient([("127.0.0.1", 1)])
    while "nodes_now" not in (counted := client.statistics()):
        os.sched_yield()  # its thread has not begun yet
    client.close()
    assert names("statistics.md", "store") == set(counted)
    text = (ROOT / GUIDE / "statistics.md").read_text()
    others = {key for key in found if key not in ("core", "pool", "transports", "flows")}
    assert names("statistics.md", "servers, clients, tables, store, failures") == others
    inner = {key for kind in ("servers", "clients", "tables") for one in found[kind].values() for key in one}
    told = {*inner, *found["pool"], *port} - {"counters"}
    assert {name for name in told if f"`{name}`" not in text} == set()


def test_every_counter_of_a_capture_is_in_the_guide(tmp_path: Path) -> None:
    async def counted() -> Any:
        vnf = VNF("b", program=False)
        await vnf.start([parse_transport(f"pcap:,{tmp_path}/out.pcap,name=data0", {})])
        try:
            return vnf.statistics()["transports"]["data0"]["counters"]
        finally:
            await vnf.close()

    told_of_a_port(set(asyncio.run(counted())), "pcap")


def told_of_a_port(counters: set[str], kind: str) -> None:
    """Those of ``kind`` alone have a table; the others are those of any port."""
    own = names("statistics.md", f"transports: {kind}")
    assert own - counters == set()
    assert counters - own - names("statistics.md", "transports: a port") == set()


@pytest.mark.parametrize(
    ("kind", "section"), [("memif", "memif"), ("af_xdp", "AF_XDP"), ("tap", "TAP and TUN"), ("pcap", "Captures")]
)
def test_every_option_of_a_port_is_in_the_guide(kind: str, section: str) -> None:
    assert names("ports.md", section) | names("ports.md", "Every port") == set(PORT_KEYS[kind])


def test_every_kind_of_port_is_in_the_guide() -> None:
    assert set(PORT_KEYS) == {"kernel", "memif", "af_xdp", "tap", "pcap"}


OPTIONS = [
    ("running.md", None, "run"),
    ("load.md", None, "load"),
    ("operating.md", "vnf ports", "ports"),
    ("operating.md", "vnf trace", "trace"),
    ("flows.md", "vnf bridge", "bridge"),
]


@pytest.mark.parametrize(("page", "heading", "name"), OPTIONS)
def test_every_option_of_a_command_is_in_the_guide(page: str, heading: str | None, name: str) -> None:
    command = command_of(name)
    told = {name.split()[0] for name in names(page, heading) if name.startswith("--")}
    assert told == {name for option in command.params if isinstance(option, click.Option) for name in option.opts}


def test_every_option_of_vnf_state_is_in_the_guide_with_its_commands() -> None:
    told = {
        re.findall("`(--[a-z]+)", row[0])[0]: row[1] for row in rows("operating.md", "vnf state") if "`--" in row[0]
    }
    commands = subcommands("state")
    offered: dict[str, set[str]] = {}
    for name, command in commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                offered.setdefault(option.opts[0], set()).add(name)
    listed = {option: set(re.findall("`([a-z]+)`", where)) or set(commands) for option, where in told.items()}
    assert listed == offered


def test_every_function_of_the_papers_is_in_the_guide() -> None:
    text = (ROOT / GUIDE / "papers.md").read_text()
    assert {name for name in api.__all__ if not re.search(rf"`{name}\b", text)} == set()


def test_every_error_is_in_the_guide() -> None:
    text = (ROOT / GUIDE / "errors.md").read_text()
    found = {
        name for name in libvnf.__all__ if isinstance(cls := getattr(libvnf, name), type) and issubclass(cls, Exception)
    }
    assert found >= {"VNFError", "ConfigError", "TransportError", "FramingError", "BufferFull", "StateError"}
    assert {name for name in found if f"`{name}`" not in text} == set()


def test_reasons_of_closing_are_those_the_software_gives() -> None:
    software = "".join(
        path.read_text() for pattern in ("native/src/py/*.rs", "libvnf/*.py") for path in ROOT.glob(pattern)
    )
    reasons = {
        reason.split("…")[0] for reason in names("errors.md", "Why a connection closed") if "abort(" not in reason
    }
    assert len(reasons) > 10
    assert {reason for reason in reasons if f'"{reason}' not in software} == set()


def test_every_test_that_the_guide_names_is_one() -> None:
    for page in PAGES:
        for file, named in re.findall(
            r"^\| \d+ \| (`test_.*`) \| (`test_.*`) \|$", (ROOT / page).read_text(), re.MULTILINE
        ):
            text = "".join((ROOT / "tests/integration" / name).read_text() for name in re.findall("`([^`]+)`", file))
            assert {name for name in re.findall("`([^`]+)`", named) if f"def {name}(" not in text} == set()


# --- programs and files -----------------------------------------------------------------------------------------------

PROGRAMS = [
    pytest.param(source, id=f"{Path(page).stem}-{number}")
    for page in PAGES
    if page != "docs/guide/testing.md"  # a test of libvnf.testing runs those
    for number, source in enumerate(blocks(page, "python"), 1)
]


@pytest.mark.parametrize("source", PROGRAMS)
def test_every_program_of_the_guide_runs(source: str) -> None:
    module = ModuleType("example")
    exec(compile(source, "example", "exec"), module.__dict__)

    async def main() -> None:
        vnfs = [value for value in vars(module).values() if isinstance(value, VNF)]
        if ports := re.findall(r'"(inside|outside|left|right)"', source):
            async with by_hand(vnfs[0], *dict.fromkeys(ports)):
                return
        async with Network(seed=1) as net:
            for vnf in vnfs:
                await net.start(vnf)

    asyncio.run(main())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_every_file_of_the_guide_is_valid(page: str, tmp_path: Path) -> None:
    for text in blocks(page, "toml"):
        (tmp_path / "vnf.toml").write_text(text)
        assert Config.read(str(tmp_path / "vnf.toml"), environment={}).text == text


def test_the_commands_of_the_guide_are_understood() -> None:
    seen = 0
    for page in PAGES:
        for command in commands(page):
            words = shlex.split(command)
            if words[0] == "vnf":
                if below := subcommands(words[1]):
                    below[words[2]].make_context(words[2], words[3:], resilient_parsing=False)
                else:
                    command_of(words[1]).make_context(words[1], words[2:], resilient_parsing=False)
                seen += 1
                for option, value in itertools.pairwise(words):
                    if option == "--transport" and ":" in value:
                        parse_transport(value, {})
    assert seen > 5


def test_a_mistake_is_told_as_the_guide_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [promised] = [text.strip() for text in blocks("docs/guide/running.md", "text") if "did you mean" in text]
    monkeypatch.chdir(tmp_path)
    Path("vnf.toml").write_text('# the chain\n\n[vnf.b.settings]\nc = "tpc://10.0.0.3:5000"\n')
    with pytest.raises(ConfigError) as error:
        Config.read("vnf.toml", environment={}).setting("b", "c", "tcp://10.0.0.3:5000")
    assert str(error.value) == promised


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("dpdk-testpmd")
def test_testpmd_is_a_wire_between_two_vnfs(process: Callable[..., Process], tmp_path: Path) -> None:
    _, dns, wire, resolver = [line for line in commands("docs/guide/ports.md") if "/run/vnf/" in line]
    places = {"/run/vnf/": f"{tmp_path}/"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answers = process(argv(dns, places), cwd=ROOT, env=environment)
    answers.wait_for(r"^dns: ready in ")
    # A prefix of its own, or two of them share a directory; unbuffered, so that the prompt shows.
    pmd = argv(wire, places)
    at = pmd.index("--no-pci")
    pmd[at:at] = [f"--file-prefix=guide{os.getpid()}", "--lcores", "0@0,1@0"]
    process(["stdbuf", "-oL", *pmd]).wait_for("testpmd> ")
    asks = process(argv(resolver, places), cwd=ROOT, env=environment)
    asks.wait_for(r"^b\.test is at 10\.0\.0\.2$")
    assert asks.stop() == answers.stop() == 0
