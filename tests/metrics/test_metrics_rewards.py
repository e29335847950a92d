"""The mean reward of an evaluation, over batches and with numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.metrics import MeanReward, NamedMeans, ReasoningMetrics, RewardMetrics, named_rewards
from ippo_lightning.metrics.rewards import MAX_MEANS, MAX_NAME, _merged
from ippo_lightning.rewards import call
from ippo_lightning.tasks import Grade


def test_the_mean_is_over_all_responses_and_not_over_batches() -> None:
    metrics = RewardMetrics()
    for batch in ([1.0], [2.0, 3.0, 6.0]):
        metrics.update(torch.tensor(batch))
    assert metrics.compute() == {"reward": pytest.approx(3.0)}
    metrics.reset()
    assert math.isnan(metrics.compute()["reward"])


def test_rewards_that_are_not_finite_do_not_count() -> None:
    metric = MeanReward()
    metric.update(torch.tensor([1.0, torch.nan, torch.inf, 3.0]))
    assert float(metric.compute()) == 2.0


def test_ranks_of_different_sizes_add_up() -> None:
    """The states are sums, so those of two ranks add up to that of one rank with all responses."""
    parts = [torch.tensor([1.0, 5.0]), torch.tensor([0.25])]
    alone, ranks = MeanReward(), [MeanReward(), MeanReward()]
    alone.update(torch.cat(parts))
    for metric, part in zip(ranks, parts, strict=True):
        metric.update(part)
    total, count = sum(float(metric.total) for metric in ranks), sum(int(metric.num_responses) for metric in ranks)
    assert total / count == pytest.approx(float(alone.compute()), rel=1e-6)  # the quotient is rounded to float32


def test_parts_have_the_mean_of_their_finite_numbers_on_uneven_ranks() -> None:
    """Three ranks: two batches, one batch with another part, and none at all."""
    batches = [
        [{"reward": [1.0, 2.0], "reward/a": [0.5, math.nan]}, {"reward": [4.0], "reward/a": [0.25]}],
        [{"reward": [8.0], "reward/b": [math.inf]}],
        [],
    ]
    ranks = [NamedMeans() for _ in batches]
    for metric, rank in zip(ranks, batches, strict=True):
        for batch in rank:
            metric.update({name: torch.tensor(values) for name, values in batch.items()})
    united = NamedMeans()
    united.table = _merged(torch.stack([metric.table for metric in ranks]))  # as torchmetrics gathers the states
    united.update({})
    found = {name: float(value) for name, value in united.compute().items()}
    assert math.isnan(found.pop("reward/b"))
    assert found == {"reward": 15.0 / 4, "reward/a": 0.75 / 2}


def test_an_evaluation_has_the_reward_only_if_it_is_measured() -> None:
    graded, grades = ReasoningMetrics(), [[Grade(True)], [Grade(False)]]
    graded.update(grades, ["1", "2"])
    assert "reward" not in graded.compute()
    graded.update(grades, ["1", "2"], rewards=named_rewards(torch.tensor([1.0, 0.0]), {"b": torch.tensor([2.0, 4.0])}))
    found = graded.compute()
    assert (found["reward"], found["reward/b"], found["exact_match"]) == (0.5, 3.0, 0.5)
    graded.reset()
    graded.update(grades, ["1", "2"])
    assert not {name for name in graded.compute() if name.startswith("reward")}
    alone = RewardMetrics()
    alone.update(torch.tensor([1.0, 2.0]), parts={"b": torch.tensor([2.0, 4.0])})
    assert alone.compute() == {"reward": 1.5, "reward/b": 3.0}


def test_every_reward_that_can_be_called_can_be_measured() -> None:
    assert call.MAX_PARTS + 1 <= MAX_MEANS
    assert call.MAX_NAME + len("reward/") <= MAX_NAME
    with pytest.raises(UserError, match="expected 1 to"):
        NamedMeans().update({"x" * (MAX_NAME + 1): torch.zeros(1)})
    with pytest.raises(UserError, match=f"expected at most {MAX_MEANS}"):
        NamedMeans().update({str(number): torch.zeros(1) for number in range(MAX_MEANS + 1)})
