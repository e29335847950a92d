"""Quantiles, norms, intervals and agreement of scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ippo_lightning.influence import (
    agree_to_drop,
    gradient_norm,
    score_intervals,
    score_quantiles,
    sign_agreement,
    sign_certainty,
)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_quantiles_agree_with_numpy(count: int) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count))
    values = scores.double().numpy()
    levels = {"min": 0, "q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1}
    expected = {name: float(np.quantile(values, level)) for name, level in levels.items()}
    assert score_quantiles(scores) == pytest.approx(expected, rel=1e-12)


def test_quantiles_of_no_rows_are_nan() -> None:
    assert all(math.isnan(value) for value in score_quantiles(torch.zeros(0)).values())


def test_the_norm_covers_all_blocks() -> None:
    assert gradient_norm({"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(2.0)}) == 3.0
    assert gradient_norm({}) == 0.0


def test_the_norm_of_small_numbers_in_half_precision_is_exact() -> None:
    assert gradient_norm({"a": torch.full((10000,), 2.0**-30, dtype=torch.bfloat16)}) == pytest.approx(100 * 2.0**-30)


def test_an_interval_covers_the_true_score_with_its_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    # 400 rows with the true score 0.5, each estimated by 16 groups of demonstrations
    group_scores = 0.5 + torch.randn(16, 400, generator=generator, dtype=torch.float64)
    low, high = score_intervals(group_scores, generator=generator)
    covered = float(((low <= 0.5) & (high >= 0.5)).double().mean())
    # the percentile interval of 16 groups is slightly too narrow
    assert 0.88 <= covered <= 0.97
    narrow = score_intervals(group_scores, confidence=0.5, generator=generator)
    assert float((narrow[1] - narrow[0]).mean()) < 0.5 * float((high - low).mean())


def test_groups_that_agree_give_an_interval_of_width_zero_and_weights_count() -> None:
    agreeing = torch.tensor([[1.0, -2.0]]).repeat(4, 1)
    low, high = score_intervals(agreeing)
    assert torch.equal(low, high)
    assert sign_certainty(low, high) == 1.0
    mixed = torch.tensor([[1.0], [-1.0]])
    low, high = score_intervals(mixed, weights=[3.0, 1.0], confidence=0.01, generator=torch.Generator().manual_seed(0))
    # the median draw contains each group once: (3 - 1) / 4
    assert float(low) == pytest.approx(0.5)


def test_only_rows_that_all_groups_reject_are_dropped() -> None:
    group_scores = torch.tensor([[-1.0, 1.0, 0.0, -2.0], [-1.0, -1.0, 0.0, 2.0]])
    assert agree_to_drop(group_scores).tolist() == [True, False, True, False]
    assert agree_to_drop(group_scores, threshold=1.5).tolist() == [True, True, True, False]
    assert sign_agreement(group_scores[0], group_scores[1]) == 0.5
