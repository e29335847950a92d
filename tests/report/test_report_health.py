"""Health: each number has a range that is good, a word, and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ippo_lightning.report.health import health, health_words
from ippo_lightning.report.records import Comparison, Method, Run


def run(history, *, config=""):
    return Run(
        Path(),
        "m",
        1,
        history=tuple({"iteration": i, **row} for i, row in enumerate(history)),
        results={},
        config=config,
    )


def comparison(**runs):
    return Comparison(Path(), {name: Method(name, name.upper(), (one,)) for name, one in runs.items()})


def rows_of(*histories, **options):
    return {row.title: row for row in health(comparison(ippo=run(*histories, **options)))}


def test_numbers_are_judged_by_their_limits_and_the_worst_come_first():
    history = [{"update/clip_fraction": 0.5, "update/approx_kl": 0.05, "influence/halves_sign_agreement": 0.9}]
    found = health(comparison(ippo=run(history)))
    assert [(row.title, row.worst) for row in found] == [
        ("Clip fraction", "bad"),
        ("KL of an update, nats per token", "watch"),
        ("Agreement of the signs of both halves", "good"),
    ]
    assert [row.good for row in found] == ["at most 20 %", "at most 0.02", "at least 85 %"]
    assert found[0].verdicts["ippo"].shown == "50.0 %"
    assert "lower the learning rate" in found[0].advice
    assert found[2].advice == ""


def test_training_numbers_are_those_of_the_last_third():
    # Six iterations: the last two average 0.3.
    history = [{"update/clip_fraction": value} for value in (0.9, 0.9, 0.9, 0.9, 0.2, 0.4)]
    assert rows_of(history)["Clip fraction"].verdicts["ippo"].shown == "30.0 %"


def test_the_sample_size_is_a_fraction_of_the_kept_episodes():
    # 64 episodes, of which half are kept, weigh as much as 8 equal ones: 8 / 32.
    row = {"influence/effective_sample_size": 8.0, "influence/scored_kept_fraction": 0.5, "rollout/episodes": 64.0}
    found = rows_of([row])["Effective sample size, as a fraction of the kept episodes"]
    assert (found.verdicts["ippo"].shown, found.worst) == ("25.0 %", "watch")
    # The mean over the last third of the iterations that have all three numbers: (0.5 + 1) / 2.
    rows = [row | {"influence/effective_sample_size": size} for size in (1.0, 2.0, 3.0, 4.0, 16.0, 32.0)]
    later = rows_of([*rows, {"rollout/episodes": 64.0}])["Effective sample size, as a fraction of the kept episodes"]
    assert later.verdicts["ippo"].shown == "75.0 %"
    # A KL of 2 per response of 4 tokens is 0.5 per token.
    kl = rows_of([{"rollout/kl": 2.0, "rollout/response_tokens_mean": 4.0}])["KL to the reference, nats per token"]
    assert (kl.verdicts["ippo"].shown, kl.worst) == ("0.500", "watch")


def test_equal_rewards_are_those_of_the_prompts_that_are_trained_on():
    title = "Prompts whose responses all have the same reward"
    plain = {"rollout/zero_variance_fraction": 0.92}
    assert rows_of([plain])[title].verdicts["ippo"].shown == "92.0 %"
    # the others are pilots that were left out
    assert rows_of([plain | {"pilot_commit/zero_variance_fraction": 0.25}])[title].verdicts["ippo"].shown == "25.0 %"


def test_entropy_and_gradient_are_compared_with_the_first_third():
    history = [
        {"update/entropy": e, "update/gradient_norm": g}
        for e, g in zip((2, 2, 1, 1, 0.1, 0.1), range(1, 7), strict=True)
    ]
    found = rows_of(history)
    # 0.1 / 2, and 5.5 / 1.5
    assert found["Entropy, late against early"].verdicts["ippo"].shown == "0.0500"
    assert found["Entropy, late against early"].worst == "bad"
    assert found["Gradient norm, late against early"].verdicts["ippo"].shown == "3.67"
    assert "Entropy, late against early" not in rows_of(history[:5])  # too short for two thirds


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"update/kept_fraction": 1.0}, None),  # plain PPO keeps everything, which is no finding
        ({"update/kept_fraction": 1.0, "influence/scored_kept_fraction": 1.0}, "100.0 %"),
        ({"update/kept_fraction": 0.03}, "3.0 %"),
    ],
)
def test_the_kept_fraction_is_judged_only_if_something_selects(row, shown):
    found = rows_of([row]).get("Kept fraction")
    assert (found and found.verdicts["ippo"].shown) == shown


def test_the_advice_is_about_the_side_that_the_number_is_on():
    low = rows_of([{"update/kept_fraction": 0.01, "influence/scored_kept_fraction": 0.01}])["Kept fraction"]
    high = rows_of([{"update/kept_fraction": 1.0, "influence/scored_kept_fraction": 1.0}])["Kept fraction"]
    assert (low.worst, high.worst) == ("bad", "watch")
    assert "Few episodes are left" in low.advice
    assert "drops almost nothing" in high.advice


@pytest.mark.parametrize(
    ("method", "shown", "word"), [("hooks", "passed", "good"), ("finite_difference", "not made", "watch")]
)
def test_the_exactness_check_follows_from_the_scoring_method(method, shown, word):
    config = f"callbacks:\n- init_args:\n    scoring:\n      method: {method}\n"
    scored = {"influence/score_median": 0.1, "influence/gradient_norm": 2.0}
    found = rows_of([scored], config=config)["Exactness check of the scores"]
    assert (found.verdicts["ippo"].shown, found.worst) == (shown, word)
    assert "Exactness check of the scores" not in rows_of([{"update/entropy": 0.1}], config=config)
    assert "Exactness check of the scores" not in rows_of([scored], config="")
    # scores without gradients
    assert "Exactness check of the scores" not in rows_of([{"influence/score_median": 0.1}], config=config)


def test_a_sentence_counts_what_is_not_good():
    shown = comparison(
        ppo=run([{"update/clip_fraction": 0.0}]),
        ippo=run([{"update/clip_fraction": 0.9, "update/approx_kl": 0.05, "update/ratio_mean": 1.0}]),
        sft=run([]),
    )
    found = health(shown)
    assert health_words(found, list(shown.methods.values())) == [
        "Health of PPO: 1 good.",
        "Health of IPPO: 1 bad (clip fraction), 1 to watch (KL of an update, nats per token), 1 good.",
    ]


def test_runs_with_the_same_verdicts_share_a_sentence_and_others_do_not():
    shown = comparison(
        a=run([{"update/clip_fraction": 0.9}]),
        b=run([{"update/clip_fraction": 0.1}]),
        c=run([{"update/clip_fraction": 0.8}]),
    )
    assert health_words(health(shown), list(shown.methods.values())) == [
        "Health of A and C: 1 bad (clip fraction).",
        "Health of B: 1 good.",
    ]


def test_a_run_in_environments_is_not_judged_by_numbers_of_texts():
    texts = {"rollout/truncated_fraction": 0.0, "rollout/kl": 0.0, "rollout/response_tokens_mean": 1.0}
    numbers = {**texts, "update/approx_kl": 0.01}
    assert set(rows_of([{**numbers, "rollout/finished_episodes": 3.0}])) == {"KL of an update, nats per action"}
    assert len(rows_of([numbers])) == 3


def test_runs_that_recorded_nothing_have_no_health():
    assert health(comparison(sft=run([]))) == []


FALLING = [{"update/entropy": value} for value in (2, 2, 1, 1, 0.1, 0.1)]
ENTROPY = "Entropy, late against early"


def entropy_row(values, *, metric="exact_match", threshold=None):
    """The row of a run whose entropy falls to a twentieth, and whose evaluations had these values."""
    evaluations = tuple({"iteration": i, "split": "validation", metric: value} for i, value in enumerate(values))
    results = {"episode_return": values[-1], "reward_threshold": threshold} if metric == "episode_return" else {}
    one = replace(run(FALLING), evaluations=evaluations, results=results)
    return next(row for row in health(comparison(ppo=one)) if row.title == ENTROPY)


@pytest.mark.parametrize(
    ("values", "options", "word", "advice"),
    [
        ([0.1, 0.5, 0.97], {}, "good", ""),
        ([0.2, 0.4, 0.6], {}, "watch", "The policy became sure while its results rose."),
        ([0.2, 0.6, 0.4], {}, "bad", "The samples become alike: raise entropy_coef or the KL"),
        ([0.5, 0.5, 0.5], {}, "bad", "The samples become alike"),
        ([20, 200, 490], {"metric": "episode_return", "threshold": 475}, "good", ""),
        ([20, 50, 90], {"metric": "episode_return", "threshold": 475}, "watch", "The policy became sure"),
        ([20, 90, 40], {"metric": "episode_return", "threshold": 475}, "bad", "The actions become alike: raise"),
        ([-500, -200, -90], {"metric": "episode_return", "threshold": -100}, "good", ""),
        ([20, 90, 200], {"metric": "episode_return"}, "watch", "The policy became sure"),
    ],
)
def test_a_low_entropy_is_judged_by_what_the_run_has_learnt(values, options, word, advice):
    row = entropy_row([float(value) for value in values], **options)
    assert row.worst == word
    assert row.advice.startswith(advice)
    assert bool(row.advice) == bool(advice)
    assert ("KL" in row.advice) == (bool(advice) and not options)  # an environment has no reference


def test_one_run_that_has_not_learnt_decides_for_its_method():
    good = tuple({"iteration": i, "split": "validation", "exact_match": v} for i, v in enumerate((0.1, 0.5, 0.97)))
    runs = (replace(run(FALLING), evaluations=good), run(FALLING))
    rows = health(Comparison(Path(), {"m": Method("m", "M", runs)}))
    assert next(row for row in rows if row.title == ENTROPY).worst == "bad"
