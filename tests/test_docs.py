"""The Python in the documentation runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = {"docs/scoring.md": "scores"}
"""Page to the name that its last block leaves behind."""


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        runs(block, names, page)
    result = names[PAGES[page]]
    assert result.shape == (6,)
    assert torch.isfinite(result).all()


def runs(block: str, names: dict[str, Any], page: str) -> None:
    code = compile(block, page, "exec")
    exec(code, names)
