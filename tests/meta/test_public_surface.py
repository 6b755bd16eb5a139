"""Public is what ``__all__`` lists: the reference has every name of it and no other, and each says what it is."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import libvnf
from tests.meta.tree import ROOT, parse

REFERENCE = Path("docs/reference")
# Modules that are public by themselves, besides libvnf.
PUBLIC = tuple(
    m for m in ("libvnf.api", "libvnf.flow", "libvnf.packet", "libvnf.testing") if importlib.util.find_spec(m)
)


def test_the_package_exports_and_does_nothing_else() -> None:
    body = parse(Path("libvnf/__init__.py")).body
    kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
    assert all(isinstance(node, kinds) for node in body)
    assert all(isinstance(node.value, ast.Constant) for node in body if isinstance(node, ast.Expr))
    assigned = {ast.unparse(t) for node in body if isinstance(node, ast.Assign) for t in node.targets}
    assert assigned <= {"__all__", "__version__"}


@pytest.mark.parametrize("module", ["libvnf", *PUBLIC])
def test_every_public_name_exists_once_and_is_documented(module: str) -> None:
    package = importlib.import_module(module)
    names = package.__all__
    assert names
    assert len(set(names)) == len(names)
    undocumented = [name for name in names if _lacks_documentation(getattr(package, name))]
    assert undocumented == []


def _lacks_documentation(thing: Any) -> bool:
    """Classes and functions say what they are; constants and type aliases are said by the reference."""
    return (inspect.isclass(thing) or inspect.isroutine(thing)) and not inspect.getdoc(thing)


@pytest.mark.parametrize("module", ["libvnf", *PUBLIC])
def test_public_methods_are_documented(module: str) -> None:
    """Those written in Python; the native ones that need more than their signature have it in ``_native.pyi``."""
    package = importlib.import_module(module)
    undocumented = [
        f"{name}.{attribute}"
        for name in package.__all__
        if inspect.isclass(cls := getattr(package, name))
        and str(cls.__module__).startswith("libvnf")
        and not cls.__module__.endswith("._native")
        for attribute, value in vars(cls).items()
        if not attribute.startswith("_")
        and (inspect.isroutine(value) or isinstance(value, property))
        and not inspect.getdoc(getattr(cls, attribute))
    ]
    assert undocumented == []


def test_the_reference_lists_what_the_package_exports() -> None:
    directive = re.compile(
        r"^\s*(?:\.\.|[`:]{3,}\s*\{)?\s*auto(?:class|function|exception|data)[}:]+\s*libvnf\.(\w+)\s*$", re.M
    )
    listed = [name for page in sorted((ROOT / REFERENCE).glob("*.md")) for name in directive.findall(page.read_text())]
    exported = [name for name in libvnf.__all__ if not name.startswith("__")]
    assert sorted(listed) == sorted(exported)
