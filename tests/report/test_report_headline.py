from __future__ import annotations

import pytest

from ippo_lightning.report.headline import findings, headline, lead

MINUS = "\N{MINUS SIGN}"


def results_with(*, match, unfaithful, seeds=5, baseline=True, seconds=(1.0, 2.0)):
    """Build results from the paired differences' means and intervals."""

    def difference(mean_and_interval):
        mean, *interval = mean_and_interval
        return {"mean": mean, "interval": interval or None, "seeds": list(range(seeds)), "per_seed": []}

    def summary(title, took):
        return {
            "title": title, "exact_match": 0.9, "unfaithful_fraction": 0.4, "kept_fraction": [1.0, 1.0, 0.4],
            "iteration_seconds": [took] * 5, "baseline": None, "featured": False,
        }  # fmt: skip

    methods = {"ppo": summary("PPO", seconds[1]), "ippo": summary("I-PPO", seconds[0])}
    methods["ippo"] |= {"baseline": "ppo" if baseline else None, "featured": True}
    found = {"exact_match": difference(match), "unfaithful_fraction": difference(unfaithful)}
    return {
        "methods": methods if baseline else {"ippo": methods["ippo"]},
        "differences": {"ippo - ppo": found} if baseline else {},
    }


@pytest.mark.parametrize(
    ("match", "unfaithful", "expected"),
    [
        ((0.02, 0.01, 0.03), (-0.2, -0.3, -0.1), "more right answers, fewer of them unfaithful"),
        ((-0.02, -0.03, -0.01), (0.2, 0.1, 0.3), "fewer right answers, more of them unfaithful"),
        ((0.02, -0.01, 0.03), (-0.2, -0.3, -0.1), "no clear change in right answers, fewer of them unfaithful"),
        ((0.02, 0.0, 0.03), (-0.2, -0.3, 0.0), "no clear difference on 5 seeds"),
    ],
)
def test_the_headline_claims_only_what_the_interval_carries(match, unfaithful, expected):
    assert headline(results_with(match=match, unfaithful=unfaithful)) == f"I-PPO against PPO: {expected}"


def test_few_seeds_are_stated_in_the_headline_and_below_it():
    results = results_with(match=(0.02, 0.01, 0.03), unfaithful=(-0.2, -0.3, -0.1), seeds=3)
    pair = "I-PPO against PPO gives no finding with 3 seeds"
    assert headline(results) == f"{pair}: exact match +2.0 points, unfaithful fraction {MINUS}20.0 points"
    assert lead(results)[0] == "Exact match: 90.0 % against 90.0 %, +2.0 points (range of 3 seeds +1.0 to +3.0)."
    assert lead(results)[-1].startswith("3 seeds only, so no finding")
    assert {finding.word for finding in findings(results, "ippo")} == {"unclear"}


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_a_difference_whose_range_contains_zero_is_no_difference_in_the_headline(seeds):
    results = results_with(match=(0.0004, -0.039, 0.035), unfaithful=(-0.2, -0.3, -0.1), seeds=seeds)
    assert headline(results).endswith(f": exact match no difference shown, unfaithful fraction {MINUS}20.0 points")
    results = results_with(match=(0.0004, -0.039, 0.035), unfaithful=(0.0,), seeds=seeds)
    assert headline(results).endswith(": no difference shown")


def test_one_seed_gives_numbers_and_no_finding():
    results = results_with(match=(0.02,), unfaithful=(-0.2,), seeds=1)
    expected = f"I-PPO against PPO on one seed: exact match +2.0 points, unfaithful fraction {MINUS}20.0 points"
    assert headline(results) == expected
    assert [finding.word for finding in findings(results, "ippo")] == ["unclear", "unclear"]
    assert lead(results)[0] == "Exact match: 90.0 % against 90.0 %, +2.0 points."
    assert lead(results)[-1].startswith("One seed only, so no finding")


def test_a_slower_method_is_called_slower():
    results = results_with(match=(0.02, 0.01, 0.03), unfaithful=(0, -1, 1), seconds=(3.0, 2.0))
    assert "An iteration took 3 s against 2 s (medians), 50 % more." in lead(results)


def test_seconds_of_runs_that_shared_cores_are_not_compared():
    results = results_with(match=(0.02, 0.01, 0.03), unfaithful=(0, -1, 1), seconds=(3.0, 2.0))
    contended = lead({**results, "jobs": 2})
    assert "2 runs at a time shared the cores, so the seconds do not compare the methods." in contended
    assert not [sentence for sentence in contended if "took" in sentence]
    assert [sentence for sentence in lead({**results, "jobs": 1}) if "took" in sentence]


def test_seconds_of_few_iterations_are_no_finding():
    results = results_with(match=(0.02, 0.01, 0.03), unfaithful=(0, -1, 1), seconds=(3.0, 2.0))
    results["methods"]["ippo"]["iteration_seconds"] = [3.0] * 4
    assert not [sentence for sentence in lead(results) if "took" in sentence]


def test_one_slow_iteration_does_not_make_a_method_slow():
    results = results_with(match=(0.02, 0.01, 0.03), unfaithful=(0, -1, 1), seconds=(3.0, 2.0))
    results["methods"]["ippo"]["iteration_seconds"] = [3.0, 3.0, 3.0, 900.0, 900.0]
    assert "An iteration took 3 s against 2 s (medians), 50 % more." in lead(results)


def test_the_lead_states_what_got_worse():
    results = results_with(match=(-0.02, -0.03, -0.01), unfaithful=(-0.2, -0.3, -0.1))
    assert lead(results)[0].startswith("Exact match is worse: 90.0 % against 90.0 %, ")
    assert f"95 % interval {MINUS}3.0 to {MINUS}1.0" in lead(results)[0]
    assert lead(results)[1].startswith("Unfaithful fraction is better")
    assert "updated on 40 % of its episodes" in lead(results)[2]


def test_without_a_baseline_nothing_is_claimed():
    results = results_with(match=(0.1,), unfaithful=(0.1,), baseline=False)
    assert headline(results) == "Results of I-PPO"
    assert lead(results) == []


def with_one_more_pair(results):
    """Add a second task: a baseline and a featured method of its own."""
    methods = results["methods"]
    methods["base"] = {**methods["ppo"], "title": "Base"}
    methods["new"] = {**methods["ippo"], "title": "New", "baseline": "base"}
    results["differences"]["new - base"] = results["differences"]["ippo - ppo"]
    return results


def test_the_headline_is_about_the_featured_method_whatever_its_name():
    results = with_one_more_pair(results_with(match=(0.02, 0.01, 0.03), unfaithful=(-0.2, -0.3, -0.1)))
    results["methods"]["ippo"]["featured"] = False
    assert headline(results) == "New against Base: more right answers, fewer of them unfaithful"


def test_without_a_featured_method_the_headline_is_about_the_first_that_was_trained_on_episodes():
    results = with_one_more_pair(results_with(match=(0.02, 0.01, 0.03), unfaithful=(-0.2, -0.3, -0.1)))
    for summary in results["methods"].values():
        summary["featured"] = False
    results["methods"]["ippo"]["kept_fraction"] = []
    assert headline(results).startswith("New against Base")


def test_each_method_is_compared_with_its_own_baseline():
    results = with_one_more_pair(results_with(match=(0.02, 0.01, 0.03), unfaithful=(-0.2, -0.3, -0.1)))
    results["methods"]["base"]["exact_match"] = 0.5
    assert "90.0 % against 50.0 %" in findings(results, "new")[0].sentence
    assert "90.0 % against 90.0 %" in findings(results, "ippo")[0].sentence
    assert lead(results)[-1] == "The table of differences also compares New."
