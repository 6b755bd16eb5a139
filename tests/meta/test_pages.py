"""Pages name files and link to pages that exist."""

import re
from pathlib import Path

import pytest

from tests.meta.tree import ROOT, files, read

PAGES = [page for page in files(".md") if page.parts[0] != ".github"]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (ROOT / page.parent / target).exists()] == []


def test_every_source_file_that_the_architecture_names_exists() -> None:
    text = read(Path("ARCHITECTURE.md"))
    named = set(re.findall(r"[\w/]+\.(?:pyi|py|rs)\b", text))
    assert len(named) > 30
    tree = {str(path) for path in files(".py", ".pyi", ".rs")}
    assert {name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in tree)} == set()


def test_every_module_of_libvnf_is_on_the_map() -> None:
    text = read(Path("ARCHITECTURE.md")).split("```", 2)[1]
    top = {path.parts[1] for path in files(".py") if path.parts[0] == "libvnf"}
    assert {name for name in top if name not in text and name != "__main__.py"} == set()
