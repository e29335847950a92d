"""The numbers of the paper stand beside those of the same task, model and method, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.report import write_report
from ippo_lightning.report.comparisons import read_comparison
from ippo_lightning.report.display import MISSING
from ippo_lightning.report.published import PAPER, PUBLISHED, published_markdown, published_table
from ippo_lightning.report.records import Comparison
from ippo_lightning.report.summary import summarise

LISTED = {
    "sft": {"title": "SFT", "seeds": [1]},
    "ppo": {"title": "PPO", "seeds": [1], "baseline": None},
    "ippo": {"title": "I-PPO", "seeds": [1], "baseline": "ppo"},
}
CELL = {"base": "ppo", "task": "gsm8k", "model": "rho-1b"}
MATCHING = {name: {**CELL, "method": method} for name, method in (("sft", "sft"), ("ppo", "ppo"), ("ippo", "paper"))}


def listed_comparison(folders: Any, **listed: Any) -> Comparison:
    folders.comparison(methods=("sft", "ppo", "ippo"), seeds=1, iterations=2, episodes=4)
    folders.list_methods(LISTED, **listed)
    return read_comparison(folders.root)


def shown(comparison: Comparison) -> str:
    return published_markdown(comparison, summarise(comparison))


@pytest.mark.usefixtures("without_figures")
def test_a_matching_comparison_shows_the_numbers_and_names_the_paper(folders: Any) -> None:
    comparison = listed_comparison(folders, axes=MATCHING)
    page = write_report(comparison.root).read_text(encoding="utf-8")
    markdown = (comparison.root / "results.md").read_text(encoding="utf-8")
    for text in (markdown, page):
        assert PAPER in text
        # SFT, PPO and I-PPO by majority vote, PPO and I-PPO by exact match
        assert all(number in text for number in ("43.52", "50.05", "51.93", "41.11", "46.10"))
        assert "12.20" not in text
    mine = summarise(comparison)["methods"]["ippo"]["majority_vote"]
    assert f"| I-PPO | Majority vote | 51.93 | {100 * mine:.1f} |" in markdown


def test_a_model_that_trains_with_an_adapter_is_still_that_model(folders: Any) -> None:
    adapted = {name: {**axes, "model": "rho-1b+lora+bf16"} for name, axes in MATCHING.items()}
    assert "51.93" in shown(listed_comparison(folders, axes=adapted))


def test_a_cell_without_a_finished_run_shows_the_paper_alone(folders: Any) -> None:
    folders.root.mkdir()
    folders.list_methods({"ippo": {"title": "I-*PPO*", "seeds": [1]}}, axes=MATCHING)
    assert "| I-\\*PPO\\* | Exact match | 46.10 | " + MISSING in shown(read_comparison(folders.root))


@pytest.mark.parametrize(
    "axes",
    [
        {"ippo": {**CELL, "task": "ecqa", "method": "paper"}},
        {"ippo": {**CELL, "model": "gemma-2-2b", "method": "paper"}},
        {"ippo": {**CELL, "method": "random"}},
        {"ippo": {"task": "gsm8k"}},
        {"ippo": ["gsm8k", "rho-1b", "paper"]},
        {"another": {**CELL, "method": "paper"}},
        "gsm8k",
        None,
    ],
    ids=["task", "model", "method", "no model", "a list", "no such column", "text", "nothing"],
)
def test_a_comparison_without_a_matching_cell_shows_nothing(folders: Any, axes: object) -> None:
    comparison = listed_comparison(folders, axes=axes)
    assert shown(comparison) == ""
    assert published_table(comparison, summarise(comparison)) is None


def test_a_comparison_of_an_earlier_version_shows_nothing(folders: Any) -> None:
    assert shown(listed_comparison(folders)) == ""


def test_every_published_number_is_a_fraction_of_a_known_cell() -> None:
    tasks, models, methods = (set(names) for names in zip(*PUBLISHED, strict=True))
    root = Path(__file__).parents[2] / "experiments"
    assert all((root / "tasks" / f"{task}.yaml").is_file() for task in tasks)
    assert methods == {"sft", "ppo", "paper"}
    assert models == {"rho-1b", "llama-3-8b"}
    assert all(0 < value < 1 for cell in PUBLISHED.values() for value in cell.values())
