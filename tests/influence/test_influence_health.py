"""The numbers that go into a log beside the scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ippo_lightning.influence import gradient_norm, score_quantiles


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_quantiles_agree_with_numpy(count: int) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count))
    values = scores.double().numpy()
    levels = {"min": 0, "q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1}
    expected = {name: float(np.quantile(values, level)) for name, level in levels.items()}
    assert score_quantiles(scores) == pytest.approx(expected, rel=1e-12)


def test_quantiles_of_no_episodes_are_not_numbers() -> None:
    assert all(math.isnan(value) for value in score_quantiles(torch.zeros(0)).values())


def test_the_norm_runs_over_all_blocks() -> None:
    assert gradient_norm({"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(2.0)}) == 3.0
    assert gradient_norm({}) == 0.0


def test_the_norm_survives_small_numbers_in_half_precision() -> None:
    assert gradient_norm({"a": torch.full((10000,), 2.0**-30, dtype=torch.bfloat16)}) == pytest.approx(100 * 2.0**-30)
