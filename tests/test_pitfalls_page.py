"""The page of pitfalls names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_test_that_the_page_names_exists(repository: Path) -> None:
    page = (repository / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (repository / "tests").rglob("test_*.py"))
    missing = {name for name in named if f"def {name}(" not in sources}
    assert len(named) > 30
    assert not missing
