"""``vnf run`` as a process: each mistake is one clear line on stderr and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = 'from libvnf import VNF\nvnf = VNF("b")\nc = vnf.setting("c", default="tcp://127.0.0.1:1")\n'
SERVER = GOOD + '@vnf.server("{}")\ndef f(conn, request, packet):\n    conn.send(packet)\n'


def vnf(tmp_path: Path, source: str | None, *options: str, spec: str = "b.py") -> subprocess.CompletedProcess[str]:
    if source is not None:
        (tmp_path / "b.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "libvnf", "run", spec, *options]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("source", "spec", "options", "words"),
    [
        (None, "b.py", [], "b.py: no such file"),
        (None, ".", [], ".: is a directory; name the file of a VNF"),
        ("x = 1\n", "b.py", [], 'b.py: defines no VNF: expected one, such as vnf = VNF("b")'),
        (
            'from libvnf import VNF\na, b = VNF("a"), VNF("b")\n',
            "b.py",
            [],
            "b.py: defines several VNFs: name one: b.py:a, b.py:b",
        ),
        (GOOD, "b.py:z", [], "b.py: there is no VNF 'z': vnf"),
        ("def f(:\n", "b.py", [], "b.py:1: SyntaxError: invalid syntax"),
        (GOOD, "b.py", ["--set", "cc=1"], "--set cc: b has no such setting: it knows c, limits.* (did you mean c?)"),
        (
            GOOD,
            "b.py",
            ["--set", "c=1"],
            "b.py:3: --set c: '1' is not an endpoint: expected tcp://, udp://, sctp:// or unix://",
        ),
        (
            GOOD,
            "b.py",
            ["--transport", "mmif:/x"],
            "--transport 'mmif:/x': expected kernel, memif, af_xdp, tap, pcap (did you mean memif?)",
        ),
        (GOOD, "b.py", ["--config", "no.toml"], "no.toml: cannot be read: No such file or directory"),
        (
            GOOD + "@vnf.server('tcp://:0')\ndef two(conn, packet): ...\n",
            "b.py",
            [],
            "b.py:4: two(conn, packet) is called as two(conn, request, packet)",
        ),
        (
            SERVER.format("tcp://192.0.2.1:0"),
            "b.py",
            [],
            "tcp://192.0.2.1:0: this machine has no such address; an empty host means loopback",
        ),
        (
            SERVER.format("sctp://:1"),
            "b.py",
            [],
            "b.py:4: sctp://:1: sctp:// is not supported yet; use tcp:// or udp://",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(
    tmp_path: Path, source: str | None, spec: str, options: list[str], words: str
) -> None:
    done = vnf(tmp_path, source, *options, spec=spec)
    assert (done.stderr.strip(), done.returncode, done.stdout) == (words, 2, "")


def test_an_exception_while_loading_is_a_line_and_a_short_traceback(tmp_path: Path) -> None:
    done = vnf(tmp_path, "def f():\n    return 1 / 0\nf()\n")
    lines = done.stderr.splitlines()
    assert (lines[0], done.returncode) == ("b.py:2: ZeroDivisionError: division by zero", 2)
    assert all("libvnf" not in line for line in lines)
    assert len(lines) < 12


def test_a_live_unix_socket_is_not_taken_over(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        done = vnf(tmp_path, SERVER.format(f"unix://{path}"))
        assert done.stderr.strip() == f"unix://{path}: another process listens there"
        assert done.returncode == 2
        assert path.exists()


def test_a_failed_start_leaves_no_socket_behind(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    source = SERVER.format(f"unix://{path}") + '@vnf.server("tcp://192.0.2.1:0")\ndef g(c, r, p): ...\n'
    assert vnf(tmp_path, source).returncode == 2
    assert not path.exists()


def test_help_names_the_commands_and_options(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pages = ((["--help"], ["run", "FILE[:APP]"]), (["run", "--help"], ["--config", "--transport", "--set"]))
    for arguments, words in pages:
        command = [sys.executable, "-m", "libvnf", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert all(word in done.stdout for word in words)
