from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from ippo_lightning.report import read_comparison, summarise
from ippo_lightning.report.summary import bootstrap_interval, last_third

ONE_STEP = 0.0045
"""9999 draws place a 2.5 % quantile within about 0.3 % of probability; the mean moves in steps of 0.004."""


@pytest.fixture
def results(folders):
    return summarise(read_comparison(folders.comparison(seeds=5, iterations=6, episodes=5)))


def test_results_have_the_agreed_keys(results):
    assert list(results) == ["methods", "differences", "unfinished", "versions", "command", "machine", "jobs", "k"]
    shared = {
        "title", "baseline", "featured", "exact_match", "majority_vote", "pass_at_k", "unfaithful_fraction",
        "intervals", "interval_over", "seeds", "per_seed", "optimizer_steps", "tokens_trained", "effective_sample_size",
    }  # fmt: skip
    assert set(results["methods"]["sft"]) == shared
    assert set(results["methods"]["ippo"]) == shared | {"kept_fraction", "iteration_seconds"}
    metrics = {"exact_match", "majority_vote", "pass_at_k", "unfaithful_fraction"}
    assert set(results["methods"]["ippo"]["intervals"]) == metrics
    assert set(results["methods"]["ippo"]["per_seed"]) == metrics
    assert list(results["differences"]) == ["sft - ppo", "random - ppo", "ippo - ppo"]
    assert set(results["differences"]["ippo - ppo"]) == {"exact_match", "unfaithful_fraction"}


def test_results_are_json_without_nan(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_means_are_means_over_the_seeds(results):
    summary = results["methods"]["ippo"]
    assert summary["seeds"] == [1, 2, 3, 4, 5]
    assert summary["exact_match"] == pytest.approx(sum(summary["per_seed"]["exact_match"]) / 5, rel=1e-12)
    assert summary["optimizer_steps"] == 16 * 6
    # 5120 tokens per iteration times the kept fraction, which falls from 0.53 by 0.15/6 an iteration
    expected = sum(5120 * (0.53 - 0.15 * iteration / 6) for iteration in range(6))
    assert summary["tokens_trained"] == pytest.approx(expected, rel=1e-12)
    assert summary["kept_fraction"] == pytest.approx([0.53 - 0.025 * i for i in range(6)], rel=1e-12)
    assert results["methods"]["ppo"]["effective_sample_size"] is None


def test_differences_are_paired_by_seed(folders):
    folders.comparison(seeds=3, methods=("ppo", "ippo"), iterations=2)
    for method, values in {"ppo": (0.1, 0.5, 0.89), "ippo": (0.19, 0.6, 1.0)}.items():
        for seed, value in enumerate(values, start=1):
            path = folders.root / method / f"seed_{seed}" / "results.json"
            path.write_text(json.dumps({"exact_match": value, "unfaithful_fraction": None}))
    difference = summarise(read_comparison(folders.root))["differences"]["ippo - ppo"]
    # Unpaired, the interval would be as wide as the seeds are far apart; paired, every seed gains 0.09 to 0.11.
    assert difference["exact_match"]["mean"] == pytest.approx(0.1, abs=1e-12)
    assert difference["exact_match"]["interval"] == pytest.approx([0.09, 0.11], abs=1e-12)
    assert difference["unfaithful_fraction"] == {
        "mean": None, "interval": None, "interval_over": None, "seeds": [], "per_seed": [],
    }  # fmt: skip


def test_a_seed_that_only_one_method_finished_is_not_compared(folders):
    folders.comparison(seeds=3, methods=("ppo", "ippo"), iterations=2)
    (folders.root / "ppo" / "seed_2" / "results.json").unlink()
    results = summarise(read_comparison(folders.root))
    assert results["differences"]["ippo - ppo"]["exact_match"]["seeds"] == [1, 3]
    assert results["methods"]["ppo"]["seeds"] == [1, 3]
    assert results["unfinished"] == ["PPO, seed 2: stopped after 2 iterations, no final results"]


def test_without_a_baseline_there_are_no_differences(folders):
    results = summarise(read_comparison(folders.comparison(seeds=2, methods=("random", "ippo"), iterations=2)))
    assert results["differences"] == {}


def test_one_seed_has_no_interval(folders):
    results = summarise(read_comparison(folders.comparison(seeds=1, iterations=2)))
    assert set(results["methods"]["ippo"]["intervals"].values()) == {None}
    assert results["differences"]["ippo - ppo"]["exact_match"]["interval"] is None


def test_one_seed_with_counts_of_its_prompts_has_intervals_over_them(folders):
    folder = folders.run("ppo", 1, iterations=2)
    folders.list_methods({"ppo": {"title": "PPO", "seeds": [1]}})
    (folder / "results.json").write_text(json.dumps({"exact_match": 0.75}))
    counts = {"samples": [2, 2], "correct": [2, 1], "judged": [2, 1], "unfaithful": [0, 1], "majority_vote": [1, 0]}
    (folder / "test_prompts.json").write_text(json.dumps({"k": 1, **counts}))
    summary = summarise(read_comparison(folders.root))["methods"]["ppo"]
    assert summary["interval_over"] == "prompts"
    # No more than if both were all right, which has Wilson's: 2 / (2 + z²).
    assert summary["intervals"]["exact_match"] == pytest.approx([0.3424, 1.0], abs=1e-4)


def test_several_seeds_have_intervals_over_seeds(results):
    assert results["methods"]["ppo"]["interval_over"] == "seeds"
    assert results["methods"]["sft"]["interval_over"] is None


@pytest.mark.parametrize(
    ("more", "jobs"),
    [
        ({"machine": "x86_64, 2 cores, 2 runs at a time"}, 2), ({"machine": "2 cores"}, None), ({"jobs": 1}, 1),
        ({"jobs": True}, None), ({"machine": "x, 1 runs at a time", "jobs": 3}, 3),
    ],
)  # fmt: skip
def test_a_comparison_tells_how_many_runs_shared_the_cores(folders, more, jobs):
    folders.list_methods({"ppo": {"title": "PPO", "seeds": [1]}}, **more)
    assert summarise(read_comparison(folders.root))["jobs"] == jobs


def test_the_bootstrap_agrees_with_all_resamples_counted_out():
    values = [0.91, 0.95, 0.93, 0.89, 0.97]
    means = [np.mean(resample) for resample in itertools.product(values, repeat=5)]
    exact = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values) == pytest.approx(exact, abs=ONE_STEP)


def test_the_bootstrap_repeats_itself_and_ignores_missing_seeds():
    assert bootstrap_interval([0.1, None, 0.4, 0.3]) == bootstrap_interval([0.1, 0.4, 0.3])
    assert bootstrap_interval([0.1, None]) is None


def test_seeds_that_agree_have_no_interval():
    assert bootstrap_interval([0.5, 0.5, 0.5]) is None
    assert bootstrap_interval([0.3 - 0.1, 0.2]) is None  # equal but for rounding


@pytest.mark.parametrize(("values", "expected"), [([], None), ([1.0], 1.0), ([0, 0, 0, 0, 3, 5], 4.0), ([1, 2], 2.0)])
def test_the_last_third_is_averaged(values, expected):
    assert last_third(values) == expected


def test_seeds_that_stopped_early_count_as_far_as_they_got(folders):
    folders.run("ppo", 1, iterations=2)
    folders.run("ppo", 2, iterations=4)
    folders.list_methods({"ppo": {"title": "PPO", "seeds": [1, 2]}})
    summary = summarise(read_comparison(folders.root))["methods"]["ppo"]
    assert summary["kept_fraction"] == [1.0] * 4
    assert summary["optimizer_steps"] == 16 * 3


def test_each_method_may_have_a_baseline_of_its_own_with_any_name(folders):
    folders.comparison(seeds=2, iterations=2)
    roles = {"sft": None, "ppo": None, "random": "sft", "ippo": "random"}
    folders.list_methods({name: {"seeds": [1, 2], "baseline": baseline} for name, baseline in roles.items()})
    differences = summarise(read_comparison(folders.root))["differences"]
    assert list(differences) == ["random - sft", "ippo - random"]
    first, second = (
        json.loads((folders.root / name / "seed_2" / "results.json").read_text())["exact_match"]
        for name in ("ippo", "random")
    )
    assert differences["ippo - random"]["exact_match"]["per_seed"][1] == pytest.approx(first - second, abs=1e-12)
    assert differences["random - sft"]["exact_match"]["seeds"] == [1]
