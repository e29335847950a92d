"""The numbers of the start of a run are those of the same test; files with other content have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.report.starts import start_scores

RESULTS = {"exact_match": 0.5, "num_prompts": 8, "samples_per_prompt": 4}


def evaluation(*, model: str = "start", split: str = "test", prompts: int = 8, samples: int = 4) -> dict[str, Any]:
    settings = {"model": {"name": model}, "split": split, "prompts": prompts, "sampling": {"num_responses": samples}}
    return {"settings": settings, "numbers": {"exact_match": {"value": 0.25}, "pass_at_4": {"value": None}}}


def write(run: Path, content: object, *, name: str = "one") -> None:
    (run / "evaluations" / name).mkdir(parents=True)
    (run / "evaluations" / name / "evaluation.json").write_text(json.dumps(content))


def test_the_evaluation_of_the_start_is_found_among_others(tmp_path: Path) -> None:
    write(tmp_path, evaluation(model="checkpoints/last.ckpt"), name="a")
    write(tmp_path, evaluation(), name="b")
    assert start_scores(tmp_path, results=RESULTS) == {"exact_match": 0.25}
    assert start_scores(tmp_path) == {"exact_match": 0.25}


@pytest.mark.parametrize(
    "content",
    [
        evaluation(split="validation"),
        evaluation(prompts=4),
        evaluation(samples=1),
        {**evaluation(), "sha256": "0" * 64},
        {"settings": {"model": {"name": "start"}, "split": "test"}, "numbers": [1]},
        {"settings": {"model": "start", "split": "test"}},
        [],
        "\ud800",
    ],
    ids=["another split", "fewer prompts", "fewer samples", "changed", "no numbers", "no model", "a list", "a text"],
)
def test_another_test_and_other_content_count_for_nothing(content: object, tmp_path: Path) -> None:
    write(tmp_path, content)
    assert start_scores(tmp_path, results=RESULTS) == {}


@pytest.mark.parametrize(
    ("own", "is_same"),
    [
        ("{evaluation: {temperature: 1.0}}", True),
        ("{evaluation: null, sampling: {temperature: 1.0}}", True),
        ("{evaluation: {temperature: 0.3}, sampling: {temperature: 1.0}}", False),
        ("{evaluation: null, sampling: {temperature: 1.0, max_new_tokens: 9}}", False),
        ("[", True),
    ],
)
def test_only_an_evaluation_that_samples_as_the_test_counts(own: str, is_same: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"model: {{init_args: {own}}}")
    content: dict[str, Any] = evaluation()
    content["settings"]["sampling"] |= {"temperature": 1.0, "max_new_tokens": 8}
    write(tmp_path, {key: value for key, value in content.items() if key != "sha256"})
    assert bool(start_scores(tmp_path, results=RESULTS)) is is_same
