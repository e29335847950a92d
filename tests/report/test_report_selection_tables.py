"""The tables of equal cost and of what is recognised, in the files of a report."""

from __future__ import annotations

import json

import pytest

from ippo_lightning.report import write_report
from ippo_lightning.report.selection_tables import equal_rows


def test_a_report_compares_at_equal_cost_and_tells_what_was_recognised(folders, without_figures):
    root = folders.comparison(seeds=5)
    page = write_report(root).read_text(encoding="utf-8")
    text = (root / "results.md").read_text(encoding="utf-8")
    results = json.loads((root / "results.json").read_text(encoding="utf-8"))
    assert set(results["equal_compute"]) == {"random - ppo", "ippo - ppo"}
    # in these runs all methods take the same steps, and each iteration of I-PPO is 0.25 s dearer and saves updates
    assert set(results["equal_compute"]["ippo - ppo"]) == {"iterations", "optimizer_steps", "seconds"}
    for words in ("At equal compute", "What the selection recognises", "Equal optimizer steps", "AUC of scores"):
        assert words in page
    assert "| Exact match, points, minus baseline at equal | iterations | optimizer steps | seconds |" in text
    assert "| What is recognised, % | misleading | dropped | precision | recall |" in text


def test_a_report_without_evaluations_and_drops_has_neither_table(folders, without_figures):
    folders.run("ppo", 1)
    root = folders.root
    (root / "ppo" / "seed_1" / "evaluations.jsonl").unlink()
    folders.list_methods({"ppo": {"title": "PPO", "seeds": [1], "baseline": None, "featured": False}})
    page = write_report(root).read_text(encoding="utf-8")
    assert "At equal compute" not in page
    assert "What the selection recognises" not in page


def test_many_unfinished_runs_are_folded(folders, without_figures):
    folders.run("ppo", 1)
    listed = {"title": "PPO", "baseline": None, "featured": False}
    for last, is_folded in ((13, False), (14, True)):
        folders.list_methods({"ppo": {**listed, "seeds": list(range(1, last + 1))}})
        page = write_report(folders.root).read_text(encoding="utf-8")
        assert ("<summary>13 runs</summary>" in page) == is_folded
        assert f"PPO, seed {last}" in page


@pytest.mark.parametrize(
    ("method", "baseline", "expected"),
    [
        (1.0, 1.0, ""),
        (1.0, 0.64, "baseline cut at 64 %"),
        (0.64, 1.0, "method cut at 64 %"),
        (0.7, 0.64, "method cut at 70 %, baseline at 64 %"),
    ],
)
def test_a_cell_says_which_run_was_cut_and_where(method, baseline, expected):
    difference = {"exact_match": {"mean": 0.1, "interval": None, "seeds": [1]}}
    view = {"method_used": method, "baseline_used": baseline, "differences": difference}
    titles = {"ppo": {"title": "PPO", "baseline": None}, "ippo": {"title": "I-PPO", "baseline": "ppo"}}
    (row,) = equal_rows({"ippo - ppo": {"seconds": view}}, {"methods": titles})
    assert row.cells["exact_match"][0].cut == expected
