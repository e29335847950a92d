from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from ippo_lightning.report import read_comparison, results_markdown, results_table, summarise
from ippo_lightning.report.rendering import render_html
from ippo_lightning.report.sample_counts import shown_columns

NUMBERS = {"exact_match": 0.5, "unfaithful_fraction": 0.25}


@pytest.fixture
def comparison(folders):
    """Return a function that lists one method per argument: of each seed (k, samples per prompt, pass@k, vote)."""

    def make(**methods):
        for name, runs in methods.items():
            for seed, (k, samples, passes, vote) in enumerate(runs, start=1):
                folder = folders.root / name / f"seed_{seed}"
                folder.mkdir(parents=True)
                counts = {"k": k, "samples_per_prompt": samples} if k else {}
                final = {**NUMBERS, "pass_at_k": passes, "majority_vote": vote, **counts}
                (folder / "results.json").write_text(json.dumps(final))
        folders.list_methods({n: {"title": n.upper(), "seeds": [*range(1, len(r) + 1)]} for n, r in methods.items()})
        return read_comparison(folders.root)

    return make


@pytest.fixture
def different(comparison):
    return comparison(one=[(4, 4, 0.6, 0.55)] * 2, other=[(16, 16, 0.9, 0.75)] * 2)


def printed(results):
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(results_table(results))
    return console.file.getvalue()


def test_methods_that_sampled_differently_have_columns_of_their_own(different):
    results = summarise(different)
    one, other = results["methods"]["one"], results["methods"]["other"]
    assert shown_columns(results["methods"].values()) == (
        "exact_match", "majority_vote_of_4", "majority_vote_of_16", "pass_at_4", "pass_at_16", "unfaithful_fraction",
    )  # fmt: skip
    assert (one["pass_at_4"], one["pass_at_16"], one["pass_at_k"]) == (0.6, None, None)
    assert (other["pass_at_4"], other["pass_at_16"], other["pass_at_k"]) == (None, 0.9, None)
    assert (one["majority_vote_of_4"], other["majority_vote_of_16"]) == (0.55, 0.75)
    assert (one["majority_vote"], other["majority_vote"]) == (None, None)
    assert one["exact_match"] == other["exact_match"] == 0.5  # the mean of any number of responses


def test_seeds_that_sampled_differently_are_not_averaged(comparison):
    summary = summarise(comparison(one=[(4, 8, 0.6, 0.5), (8, 8, 0.8, 0.7), (8, 8, 1.0, 0.9)]))["methods"]["one"]
    assert (summary["pass_at_4"], summary["pass_at_8"]) == (0.6, 0.9)
    assert summary["per_seed"]["pass_at_8"] == [None, 0.8, 1.0]
    assert summary["intervals"]["pass_at_8"] == [0.8, 1.0]
    assert summary["majority_vote"] == pytest.approx(0.7)  # all voted over eight responses


def test_a_run_that_recorded_no_count_shares_no_column_with_one_that_did(comparison):
    results = summarise(comparison(old=[(None, None, 0.6, 0.5)], new=[(8, 8, 0.8, 0.7)]))
    assert shown_columns(results["methods"].values())[1:5] == (
        "majority_vote", "majority_vote_of_8", "pass_at_k", "pass_at_8",
    )  # fmt: skip
    assert results["methods"]["new"]["pass_at_k"] is None


def test_a_run_without_the_number_does_not_split_the_column(comparison, folders):
    comparison(one=[(4, 4, 0.6, 0.5)], trained=[(None, None, None, None)])
    (folders.root / "trained" / "seed_1" / "results.json").write_text(json.dumps({"episode_return": 1.0}))
    results = summarise(read_comparison(folders.root))
    assert results["k"] == 4
    assert results["methods"]["one"]["pass_at_k"] == 0.6


def test_each_table_names_the_counts(different):
    results = summarise(different)
    text, markdown = printed(results), results_markdown(results)
    html = render_html(different, results, {}, skipped=[])
    assert {"MV@4", "MV@16", "pass@4", "pass@16"} <= set(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert "| MV@4 % | MV@16 % | pass@4 % | pass@16 % |" in markdown
    assert "| 55.0 | \N{EN DASH} | 60.0 | \N{EN DASH} |" in markdown
    assert "Majority vote of 16</th>" in html
    assert "Pass@4</th>" in html
    assert "Pass@k" not in html


def test_the_widest_split_table_fits_a_terminal(comparison):
    widest = (0.996, 0.997, 1.0, 1.0, 1.0)
    results = summarise(comparison(one=[(4, 4, v, v) for v in widest], two=[(16, 16, v, v) for v in widest]))
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
