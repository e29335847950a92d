"""The tables of equal cost and of what is recognised, in the files of a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ippo_lightning.report import report_of, write_report
from ippo_lightning.report.equal_compute import equal_compute
from ippo_lightning.report.records import Comparison, Method, Run
from ippo_lightning.report.selection_tables import equal_rows, selection_markdown
from ippo_lightning.report.summary import summarise
from ippo_lightning.report.wording import wording


@pytest.fixture
def control_comparison() -> Comparison:
    """Two runs in environments, with two evaluations each."""
    history = tuple({"iteration": i, "rollout/finished_episodes": 1.0, "rollout/episodes": 64.0} for i in range(2))
    evaluations = tuple({"iteration": i, "episode_return": float(i)} for i in range(3))
    methods = {
        name: Method(
            name,
            name,
            (Run(Path(), name, 1, history=history, evaluations=evaluations, results={}),),
            baseline="iif" if name == "ppo" else None,
        )
        for name in ("iif", "ppo")
    }
    return Comparison(root=Path(), methods=methods)


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
    assert "| What is recognised, % | advantage 0 | misleading | dropped | precision | recall |" in text
    for words in ("An episode is misleading if its update", "a small difference at equal seconds is no finding"):
        assert words in page
        assert words in text
    assert "Not in the table: PPO (dropped no recorded episode)." in page  # SFT was not trained here
    for section in ("equal-compute", "recognised"):
        assert f'<a href="#{section}">' in page
        assert f'id="{section}"' in page


def test_runs_that_shared_the_cores_say_so_where_the_seconds_are_missing(folders, without_figures):
    root = folders.comparison(seeds=1, methods=("ppo", "ippo"))
    listed = json.loads((root / "comparison.json").read_text(encoding="utf-8"))
    (root / "comparison.json").write_text(json.dumps({**listed, "jobs": 2}), encoding="utf-8")
    runs = [root / name / "seed_1" for name in ("ppo", "ippo")]
    whole, single = write_report(root), report_of(runs, output=root / "single", baseline="ppo")
    for page in (whole.read_text(encoding="utf-8"), single.read_text(encoding="utf-8")):
        assert "At equal compute" in page
        assert "Equal seconds" not in page
        for section in ("equal-compute", "training"):
            words = page.partition(f'<h2 id="{section}">')[2] or page.partition(f'<h3 id="{section}">')[2]
            assert "2 runs at a time shared the cores, so the seconds do not compare the methods." in words[:2000]


def test_what_an_environment_samples_are_transitions(control_comparison):
    equal = equal_compute(control_comparison)
    text = selection_markdown(equal, {}, summarise(control_comparison), words=wording(control_comparison))
    assert "| iterations | sampled transitions |" in text


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
