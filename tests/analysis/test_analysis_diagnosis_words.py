"""What a diagnosis says: more, less, or no more than chance, and nothing from too few records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning.analysis.diagnosed_round import DiagnosedRound
from ippo_lightning.analysis.diagnosis import Correlation, Records, diagnose
from ippo_lightning.analysis.diagnosis_words import headline, lead, notes, verdict
from ippo_lightning.analysis.monte_carlo import MonteCarlo
from ippo_lightning.analysis.record_scores import RecordScores

ROWS, COUNT = 200, 40


def diagnosed(wrong: np.ndarray, true: np.ndarray) -> DiagnosedRound:
    """Records in the order of their scores, of which some have the wrong sign."""
    records = Records(
        scores=np.arange(ROWS) - ROWS / 2,
        estimates=np.where(wrong, -1.0, 1.0) * np.where(true == 0, 1.0, true),
        monte_carlo=true,
        clusters=np.arange(ROWS),
    )
    everything = np.ones(ROWS, dtype=bool)
    return DiagnosedRound(
        iteration=4,
        episodes=make_episodes([2] * ROWS, [3] * ROWS),
        scores=RecordScores(
            scores=torch.arange(ROWS), finite=torch.ones(ROWS, dtype=torch.bool), target="reward", words="the reward"
        ),
        monte_carlo=MonteCarlo(
            advantages=true, baseline="group", clusters=records.clusters, is_known=everything, bootstrapped=0
        ),
        found=diagnose(records, count=COUNT),
        gamma=1.0,
        positions=np.arange(ROWS),
        weights=np.where(np.arange(ROWS) < COUNT, 0.0, 1.0),
        trains_policy=True,
        num_broken=0,
        num_unfinished=0,
    )


EVERY_THIRD = np.arange(ROWS) % 3 == 0
AT_THE_LOW_END = EVERY_THIRD | (np.arange(ROWS) < COUNT)
AT_THE_HIGH_END = EVERY_THIRD & (np.arange(ROWS) >= COUNT)


@pytest.mark.parametrize(
    ("wrong", "expected", "said"),
    [
        (AT_THE_LOW_END, "more", "low scores point at wrong advantages, as IIF reports"),
        (EVERY_THIRD, "equal", "within what random responses give"),
        (AT_THE_HIGH_END, "less", "less than among random responses"),
    ],
)
def test_the_lowest_are_compared_with_random_ones(wrong: np.ndarray, expected: str, said: str) -> None:
    found = diagnosed(wrong, np.ones(ROWS))
    assert verdict(found) == expected
    assert said in lead(found)[0]
    fraction = 100 * wrong[:COUNT].mean()
    assert f"Of the 40 responses with the lowest scores, {fraction:.0f} % have an advantage" in headline(found)


def test_too_few_with_a_sign_are_no_finding() -> None:
    found = diagnosed(AT_THE_LOW_END, np.where(np.arange(ROWS) < COUNT - 9, 0.0, 1.0))
    assert verdict(found) == "unknown"
    assert headline(found).endswith("9 can be judged by Monte Carlo: too few for a finding")
    assert not any("differ by" in sentence for sentence in lead(found))


def test_those_without_a_sign_are_named_in_the_headline() -> None:
    found = diagnosed(AT_THE_LOW_END, np.where(np.arange(ROWS) < COUNT - 20, 0.0, 1.0))
    assert headline(found).startswith("Of the 20 that can be judged of the 40 responses with the lowest scores, 100 %")


def test_what_the_run_dropped_is_told() -> None:
    found = diagnosed(EVERY_THIRD, np.ones(ROWS))
    assert "The run dropped 100 % of the lowest and 0 % of the highest." in lead(found)


def test_estimates_that_are_the_rewards_themselves_are_named() -> None:
    text = "The estimated advantages are rewards minus a baseline, too"
    assert any(text in note for note in notes(diagnosed(EVERY_THIRD & False, np.ones(ROWS))))
    assert not any(text in note for note in notes(diagnosed(EVERY_THIRD, np.ones(ROWS))))


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_what_the_critic_cannot_tell_is_named(shift: float) -> None:
    true = np.where(np.arange(ROWS) % 2, 1.0, -1.0) + shift
    found = diagnosed(EVERY_THIRD, true)
    text = "Both advantages subtract the critic's value here"
    assert not any(text in sentence for sentence in lead(found))
    of_critic = replace(found, monte_carlo=replace(found.monte_carlo, baseline="critic", bootstrapped=7))
    assert text in lead(of_critic)[1]
    assert any(note.startswith("7 responses of 200 belong to episodes that") for note in notes(of_critic))
    assert any("far off on average" in note for note in notes(of_critic)) == (shift > 0)


def test_what_is_left_out_is_counted() -> None:
    found = replace(diagnosed(EVERY_THIRD, np.ones(ROWS)), num_unfinished=1, num_broken=2, trains_policy=False)
    said = " ".join(notes(found))
    assert "Left out: 1 response of episodes that the end of the buffer cuts" in said
    assert "2 responses without a finite score are left out" in said
    assert "the critic learned alone" in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-0.09, "is nearly unrelated to"),
        (0.09, "is nearly unrelated to"),
        (-0.11, "falls with"),
        (0.11, "rises with"),
    ],
)
def test_a_weak_correlation_has_no_direction_however_certain_it_is(value: float, said: str) -> None:
    one = diagnosed(EVERY_THIRD, np.ones(ROWS))
    certain = Correlation(value, (value - 0.01, value + 0.01), ROWS)
    found = replace(one, found=replace(one.found, correlation=certain))
    assert any(said in sentence for sentence in lead(found))


def test_the_highest_scores_are_beside_random_ones_too() -> None:
    one = diagnosed(AT_THE_LOW_END, np.ones(ROWS))
    (sentence,) = (sentence for sentence in lead(one) if "with the highest scores" in sentence)
    control = one.found.control["wrong_fraction"]
    assert f"of as many random responses, {100 * control.mean:.0f} % [{100 * control.low:.0f}, " in sentence


def test_the_size_of_the_difference_is_told_of_both_ends() -> None:
    # the lowest half is off by 2, the highest by 0
    one = diagnosed(np.arange(ROWS) < ROWS / 2, np.ones(ROWS))
    assert any("differ by 2 on average in the lowest responses and by 0 in the highest" in part for part in lead(one))
