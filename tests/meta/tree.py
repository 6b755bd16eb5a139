"""What the meta tests read: the project's own files, and the imports of its Python modules."""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def files(*suffixes: str) -> tuple[Path, ...]:
    """Every file that is, or is about to be, under version control; relative to ROOT."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = (Path(name) for name in sorted(set(listed.stdout.decode().split("\0"))) if name)
    return tuple(p for p in paths if (not suffixes or p.suffix in suffixes) and (ROOT / p).is_file())


def read(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(read(path), str(path))


def module_name(path: Path) -> str:
    """``libvnf/state/__init__.py`` is ``libvnf.state``."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules(*packages: str) -> dict[str, Path]:
    """The Python modules of ``packages`` (folders at the top of the tree), by name."""
    return {module_name(p): p for p in files(".py") if p.parts[0] in packages}


@dataclass(frozen=True)
class Import:
    module: str  # the module named, or the one that a `from` import takes a submodule from
    line: int
    typing_only: bool  # under `if TYPE_CHECKING:`
    name: str | None = None  # of `from module import name`


def imports(path: Path) -> Iterator[Import]:
    """What a module imports, by absolute names; ``from . import x`` yields the submodule when there is one."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]

    def walk(node: ast.AST, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                known = modules(base.split(".")[0])
                if alias.name == "_native" or any(f"{name}.".startswith(f"{inner}.") for name in known):
                    yield Import(inner, node.lineno, typing_only)
                else:
                    yield Import(base, node.lineno, typing_only, alias.name)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for statement in node.body:
                yield from walk(statement, True)
            for statement in node.orelse:
                yield from walk(statement, typing_only)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, typing_only)

    yield from walk(parse(path), False)
