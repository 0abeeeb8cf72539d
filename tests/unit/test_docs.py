"""What the pages of `docs/` show is Python, and what the tutorial tells works."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "index.md", DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]


def python(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_example_is_python(page: Path) -> None:
    blocks = python(page)
    assert blocks or page.stem in ("judge", "reconnect")
    for block in blocks:
        compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = python(DOCS / "tutorial.md")
    (tmp_path / "shout.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(tmp_path)
    loopback = next(block for block in blocks if "LoopbackTransport" in block)
    exec(compile(loopback, "tutorial.md", "exec"), {})
