"""The wheel that `make wheel` built, in an empty environment without a compiler: it installs, and the tutorial runs."""

import os
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers import DEADLINE_S, Process

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A new environment's bin folder, and variables under which that is the whole PATH."""
    venv.create(tmp_path / "bare", with_pip=True)
    programs = tmp_path / "bare" / "bin"
    kept = {
        k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_", "HTTP", "http", "no_proxy", "NO_PROXY"))
    }
    return programs, {**kept, "PATH": str(programs), "HOME": str(tmp_path)}


@pytest.mark.wheel
@pytest.mark.timeout(600)
def test_the_tutorial_runs_from_the_wheel_alone(
    bare: tuple[Path, dict[str, str]],
    process: Callable[..., Process],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    programs, variables = bare
    assert not any(
        shutil.which(compiler, path=variables["PATH"]) for compiler in ("cc", "gcc", "clang", "rustc", "cargo")
    )
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-"
    (wheel,) = (ROOT / "dist").glob(f"libvnf-*-{tag}*.whl")
    subprocess.run([programs / "python", "-m", "pip", "install", "-q", wheel], env=variables, cwd=tmp_path, check=True)

    where: list[str | Path] = [
        programs / "python",
        "-c",
        "import libvnf, libvnf._native as n; print(libvnf.__file__, n.__file__)",
    ]
    found = subprocess.run(where, env=variables, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert all(path.startswith(str(programs.parent)) for path in found.split())

    shutil.copy(ROOT / "docs" / "tutorial" / "echo.py", tmp_path)
    port = free_port()
    vnf = process([programs / "vnf", "run", "echo.py", "--set", f"listen=tcp://:{port}"], cwd=tmp_path, env=variables)
    vnf.wait_for("^echo: ready in ")
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as peer:
        peer.sendall(b"one\ntwo\n")
        answer = b""
        while answer.count(b"\n") < 2:
            piece = peer.recv(4096)
            assert piece, f"it closed the connection after {answer!r}"
            answer += piece
    assert answer == b"one\ntwo\n"
    assert vnf.stop() == 0, vnf.output
