"""The programs and commands that pages show a reader, taken from the pages, so that a test can run them."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page whose info string is just ``language``."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """What the page tells to type, in order; lines that end with a backslash are joined."""
    return [
        line.removeprefix("$ ")
        for block in blocks(page, "console")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]


def argv(command: str, replacing: dict[str, str] | None = None) -> list[str]:
    """A command as arguments, its places (ports, paths) replaced by those of the test."""
    for old, new in (replacing or {}).items():
        command = command.replace(old, new)
    words = shlex.split(command)
    return [sys.executable, "-m", "libvnf", *words[1:]] if words[0] == "vnf" else words
