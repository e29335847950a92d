"""The report shows which part of the model the scores come from."""

from __future__ import annotations

import json

import pytest

from ippo_lightning.report import read_comparison, write_report
from ippo_lightning.report.parts import PARTS, model_parts

pytestmark = pytest.mark.usefixtures("without_figures")


def test_numbers_are_averaged_over_the_iterations_and_seeds_that_have_them(folders) -> None:
    root = folders.comparison(seeds=2, methods=("ppo", "ippo"), iterations=4, episodes=4)
    for seed, values in ((1, (0.2, 0.4)), (2, (0.6, 0.8))):
        path = root / "ippo" / f"seed_{seed}" / "history.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row, value in zip(rows, values, strict=False):
            row["influence/part_attention"] = value
            row["influence/part_mlp"] = 0.25
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert model_parts(read_comparison(root), PARTS) == {
        "Attention": {"ippo": pytest.approx(0.5)},
        "MLP": {"ippo": pytest.approx(0.25)},
    }
    assert '<td data-name="I-PPO">50.0</td>' in write_report(root).read_text()


def test_runs_that_recorded_nothing_show_nothing(folders) -> None:
    root = folders.comparison(seeds=1, methods=("ppo", "ippo"), iterations=2, episodes=4)
    assert model_parts(read_comparison(root), PARTS) == {}
    assert "Which part of the model" not in write_report(root).read_text()


def test_a_part_that_is_the_whole_model_is_not_shown(folders) -> None:
    root = folders.comparison(seeds=1, methods=("ppo", "ippo"), iterations=2, episodes=4)
    path = root / "ippo" / "seed_1" / "history.jsonl"
    rows = [{**json.loads(line), "influence/part_other": 1.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert model_parts(read_comparison(root), PARTS) == {}
