"""Scores predict the effect of one real optimizer step: leave-one-out, half batches, poisoned episodes, order."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from ground_truth import choices
from one_step import (
    NUM_EPISODES,
    Scene,
    Steps,
    area_under_curve,
    build_scene,
    rank_correlation,
    scores_of,
    slope,
)

SEEDS = range(5)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [build_scene(seed) for seed in SEEDS]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_score_is_the_effect_of_leaving_the_episode_out_of_a_small_plain_step(scenes: list[Scene], seed: int) -> None:
    scene, rate = scenes[seed], 1e-4
    scores = scores_of(scene, kind="raw")
    effects = Steps(scene, optimizer="sgd", learning_rate=rate).leave_one_out()
    assert rank_correlation(effects, scores) >= 0.99
    assert 0.97 <= slope(effects, rate * scores / NUM_EPISODES) <= 1.03
    assert float((effects.sign() == scores.sign()).double().mean()) >= 0.97


def test_scaled_scores_predict_an_adam_step_better_than_plain_scores(scenes: list[Scene]) -> None:
    scaled, raw = [], []
    for scene in scenes:
        effects = Steps(scene, optimizer="adamw", learning_rate=1e-5).leave_one_out()
        scaled.append(rank_correlation(effects, scores_of(scene, kind="adam")))
        raw.append(rank_correlation(effects, scores_of(scene, kind="raw")))
    assert min(scaled) >= 0.95
    assert fmean(scaled) > fmean(raw) + 0.01


@pytest.mark.parametrize(
    ("optimizer", "rate", "kind", "least"), [("sgd", 1e-4, "raw", 0.95), ("adamw", 1e-5, "adam", 0.9)]
)
def test_sums_of_scores_predict_steps_on_half_batches(
    scenes: list[Scene], optimizer: str, rate: float, kind: str, least: float
) -> None:
    for scene in scenes:
        steps = Steps(scene, optimizer=optimizer, learning_rate=rate)
        halves, losses = steps.half_batches(40, torch.Generator().manual_seed(0))
        assert rank_correlation(-losses, halves @ scores_of(scene, kind=kind)) >= least


def test_episodes_with_flipped_advantages_have_low_scores(scenes: list[Scene]) -> None:
    found = [area_under_curve(scores_of(scene, kind="adam"), scene.episodes.poisoned) for scene in scenes]
    assert fmean(found) >= 0.75


def test_one_step_is_best_on_positive_episodes_and_worst_on_negative_ones(
    scenes: list[Scene],
) -> None:
    losses: dict[str, list[float]] = {}
    for scene in scenes:
        steps = Steps(scene, optimizer="sgd", learning_rate=1e-3)
        for name, weights in choices(scores_of(scene, kind="raw")).items():
            losses.setdefault(name, []).append(steps.loss_after(weights))
    mean = {name: fmean(values) for name, values in losses.items()}
    assert mean["positives only"] < mean["all"]
    assert mean["positives only"] < mean["as many at random"] < mean["negatives only"]
