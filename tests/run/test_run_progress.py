"""The numbers beside the progress bar."""

from __future__ import annotations

import math

import pytest

from ippo_lightning.run.progress import summary_line


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"rollout/reward_mean": 0.5, "update/kept_fraction": 0.25}, "reward 0.50 kept 25%"),
        ({"exact_match": 0.0, "unfaithful_fraction": math.nan}, "EM 0.00"),
        ({"something/else": 1.0}, ""),
    ],
    ids=["known", "nan", "unknown"],
)
def test_the_bar_shows_the_numbers_that_exist(numbers: dict[str, float], expected: str) -> None:
    assert summary_line(numbers) == expected
