"""What a reader may rely on: no promise of later work, no path of somebody's machine, no waiting by the clock."""

import ast
import re
from pathlib import Path

from tests.meta.tree import ROOT, files, parse, read

TEXT = {".py", ".pyi", ".rs", ".toml", ".md", ".sh", ".txt", ".yml", ".yaml", ".cfg", ".service", ".conf"}
HERE = Path(__file__).resolve().relative_to(ROOT)
LOCKS = {"Cargo.lock", "requirements-dev.txt"}


def texts() -> dict[Path, str]:
    """Every file people write, but this one, which has to name what it looks for."""
    chosen = (p for p in files() if p.suffix in TEXT or p.parts[0] in {"tools", ".ci", "Makefile"})
    found = {p: read(p) for p in chosen if p != HERE and p.name not in LOCKS}
    assert len(found) > 10
    return found


def places(pattern: str, among: dict[Path, str] | None = None) -> list[str]:
    wanted = re.compile(pattern)
    return [
        f"{path}:{number} {line.strip()}"
        for path, text in (texts() if among is None else among).items()
        for number, line in enumerate(text.splitlines(), 1)
        if wanted.search(line)
    ]


def test_nothing_is_left_for_later() -> None:
    assert places(r"\b(TODO|FIXME|XXX|HACK)\b|\btodo!\(|\bunimplemented!\(") == []


def test_no_file_names_a_place_on_one_machine() -> None:
    # The examples' own places, /run and /etc, are every machine's.
    assert places(r"(?<![\w.])/(work|root|home|Users|opt)/\w|(?<![\w.])/tmp/\w") == []


def test_pinned_requirements_name_no_index() -> None:
    text = read(Path("requirements-dev.txt"))
    assert "==" in text
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", text)


def test_no_python_test_waits_by_the_clock() -> None:
    tests = [p for p in files(".py") if "tests" in p.parts or p.name.startswith("test_")]
    assert tests
    sleeping = []
    for path in tests:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep"}:
                sleeping.append(f"{path}:{node.lineno}")
            if (
                isinstance(node, ast.ImportFrom)
                and node.module == "time"
                and any(a.name == "sleep" for a in node.names)
            ):
                sleeping.append(f"{path}:{node.lineno}")
    assert sleeping == []


def test_no_rust_test_waits_by_the_clock() -> None:
    rust = {p: read(p) for p in files(".rs")}
    assert rust
    inside = {p: text if p.parts[1] == "tests" else text.partition("#[cfg(test)]")[2] for p, text in rust.items()}
    assert places(r"\bthread::sleep\b|\bsleep\(", inside) == []


def test_every_skipped_test_says_what_to_do_about_it() -> None:
    for path in files(".py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and re.search(r"\b(skip|skipif|xfail|importorskip)$", ast.unparse(node.func)):
                first = node.args[0] if ast.unparse(node.func).endswith(".skip") and node.args else None
                reason = next((k.value for k in node.keywords if k.arg == "reason"), first)
                assert reason is not None, f"{path}:{node.lineno} has no reason"
                if isinstance(reason, ast.Constant):
                    assert len(str(reason.value)) >= 20, f"{path}:{node.lineno}: that is not enough of a reason"
    assert places(r"#\[ignore\]", {p: read(p) for p in files(".rs")}) == []


def test_the_python_in_the_documentation_compiles() -> None:
    blocks = [
        (f"{path}:{text[: found.start()].count(chr(10)) + 1}", found[2])
        for path, text in texts().items()
        if path.suffix == ".md"
        for found in re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    ]
    assert blocks
    for where, source in blocks:
        indent = len(source) - len(source.lstrip(" "))
        lines = "\n".join(line[indent:] for line in source.splitlines())
        compile(lines, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
