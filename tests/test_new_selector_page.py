"""The file of the page about a new selector is short, and does in a run what the page says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable
from two_ranks_prompts import Sampled

from ippo_lightning.callbacks import PromptSelection

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "new_selector.md"
MOST_LINES = 40


@pytest.fixture
def file() -> str:
    return PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


@pytest.fixture
def rule(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class, from a file of its own as in a project."""
    (tmp_path / "discard_solved.py").write_text(file, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("discard_solved").DiscardSolved
    sys.modules.pop("discard_solved", None)


def is_even(prompts: Any, responses: Any, examples: Any) -> list[float]:
    """A reward by which each response to some of the prompts is right."""
    return [float(int(example["answer"]) % 2 == 0) for example in examples]


def fitted(folder: Path, rule: Any, **changes: Any) -> tuple[Any, list[list[str]]]:
    """Two of the same four prompts in each iteration; also which ones."""
    module, sampled, data = tiny_module(reward=is_even), Sampled(), tiny_data(batch_size=4, num_train=4)
    tiny_loop(folder, module, callbacks=[PromptSelection(rule), sampled], data=data, **changes).fit()
    return module, sampled.prompts


def test_the_file_has_at_most_the_promised_lines(file: str) -> None:
    assert 20 < len(file.splitlines()) <= MOST_LINES


def test_a_solved_prompt_is_sampled_only_if_no_other_is_left(rule: Any, tmp_path: Path) -> None:
    data = tiny_data(batch_size=4, num_train=4)
    data.setup()
    even = {row["prompt"] for row in data.splits.prompts if int(row["example"]["answer"]) % 2 == 0}
    whole = rule()
    module, prompts = fitted(tmp_path / "whole", whole, max_iterations=4)
    solved: set[str] = set()
    for of_iteration in prompts:
        unsolved = 4 - len(solved)
        assert len(set(of_iteration) & solved) == max(2 - unsolved, 0)
        solved |= set(of_iteration) & even
    assert 0 < len(solved) == len(whole.solved) < 4
    _, first = fitted(tmp_path / "broken", rule(), max_iterations=2)
    resumed, rest = fitted(tmp_path / "broken", rule(), max_iterations=4, resume=True)
    assert first + rest == prompts
    assert same(trainable(resumed), trainable(module))
