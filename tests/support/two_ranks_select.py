"""A plain module and a rollout, filtered by one process or by two that have half of the rows each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ippo_lightning.algorithms import GroupBaseline
from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.policies import PolicyOutput
from ippo_lightning.records import ControlEpisodes, UpdatePlan
from ippo_lightning.selection import (
    ActivationDifference,
    AverageReward,
    ByLength,
    LeaveOneOutMean,
    MaxRewardVariance,
    Random,
    ReturnOfBuffer,
    RolloutTable,
    SelectionRule,
)
from ippo_lightning.selection.predicted_gain import GainPredictor

COUNT, STEPS = 12, 5
HALVES = (list(range(7)), list(range(7, COUNT)))
"""Rows of each rank; no group has rows on both."""


BASELINES = "advantages over the kept rows"
GAIN = "predicted gain"


class BestOfGroup(SelectionRule):
    needs = frozenset({"rewards", "groups"})

    def keep(self, table: RolloutTable) -> Tensor:
        is_same_group = table.groups[:, None] == table.groups
        return table.rewards >= torch.where(is_same_group, table.rewards, -torch.inf).amax(dim=1)


RULES: dict[str, dict[str, Any]] = {
    "influence": {"target": ReturnOfBuffer(max_tokens=15), "max_weight": 1.5},
    "influence from groups": {"target": ReturnOfBuffer(), "scoring": ScoringSettings(health_groups=2)},
    "return of the others": {"target": ReturnOfBuffer(leave_out_self=True)},
    "reward of all": {"target": AverageReward()},
    "reward of the others": {"target": AverageReward(leave_out_self=True, max_tokens=15)},
    "mean of the others": {"target": LeaveOneOutMean(), "scoring": ScoringSettings(normalise="length")},
    "target of one rank": {"target": LeaveOneOutMean()},
    "activations": {"target": ActivationDifference(batches=[torch.eye(4).double()[place:] for place in range(3)])},
    "variance": {"rule": MaxRewardVariance(num_kept=2)},
    "length": {"rule": ByLength(fraction=0.6)},
    "random": {"rule": Random(fraction=0.5)},
    "reward": {"rule": "reward", "min_keep": 8},
    "advantage_sign": {"rule": "advantage_sign"},
    "own": {"rule": BestOfGroup()},
    "whole groups, mean of scores": {"target": ReturnOfBuffer(), "whole_groups": "mean"},
    "whole groups, sum of rewards": {"rule": "reward", "whole_groups": "sum"},
    "whole groups, random": {"rule": Random(fraction=0.5), "whole_groups": "mean"},
}


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.actor = nn.Linear(4, 3)
        self.double()

    def score(self, episodes: ControlEpisodes) -> PolicyOutput:
        chosen = self.actor(episodes.observations).log_softmax(-1).gather(-1, episodes.actions[..., None]).squeeze(-1)
        return PolicyOutput(log_probs=chosen, entropy=None, values=None)

    def episode_losses(self, episodes: ControlEpisodes) -> Tensor:
        terms = torch.where(episodes.mask, self.score(episodes).log_probs * episodes.advantages, 0.0)
        return -terms.sum(dim=1) / episodes.mask.sum(dim=1)

    def validation_loss(self, batch: Tensor) -> Tensor:
        return self.actor(batch).mean()

    def response_activations(self, rows: ControlEpisodes | Tensor, *, layer: int | None) -> Tensor:
        return rows if isinstance(rows, Tensor) else rows.observations.mean(dim=1)

    def require_layer(self, layer: int | None) -> None:
        """Any layer will do."""


class Quadratic(Policy):
    """Its demonstrations pull into different directions."""

    def validation_loss(self, batch: Tensor) -> Tensor:
        return self.actor(batch).square().mean()


class Compared(Policy):
    """Its baseline has a spread that is that of all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.advantages = self.compute_advantages = GroupBaseline(scale="batch")


def rollout(rows: list[int]) -> ControlEpisodes:
    """The same numbers in each process, cut to some rows; each rank numbers its groups from 0, as a rollout does."""
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randn(COUNT, STEPS, generator=generator, dtype=torch.float64)
    mask = torch.rand(COUNT, STEPS, generator=generator) > 0.3
    mask[:, -1] = True
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3])[rows]
    done = torch.zeros(COUNT, STEPS, dtype=torch.bool)
    return (
        ControlEpisodes(
            mask=mask,
            log_probs=numbers,
            ref_log_probs=numbers,
            values=numbers,
            rewards=numbers,
            advantages=numbers * mask,
            returns=numbers,
            outcome_rewards=numbers.sum(dim=1),
            truncated=done[:, 0],
            group=torch.arange(COUNT),
            observations=torch.randn(COUNT, STEPS, 4, generator=generator, dtype=torch.float64),
            actions=torch.randint(3, (COUNT, STEPS), generator=generator),
            next_values=numbers,
            terminated=done,
            done=done,
        )
        .select(rows)
        .evolve(group=group - group.min())
    )


def weights_of(rows: list[int]) -> dict[str, Tensor]:
    """Return the weights that each rule gives to rows, of which another callback has dropped every fourth.

    In one case it has dropped all rows of the second rank.
    """
    found = {}
    for name, settings in RULES.items():
        plan = UpdatePlan(episodes=rollout(rows))
        is_of_first = name == "target of one rank"
        dropped = [row in HALVES[1] if is_of_first else row % 4 == 0 for row in rows]
        plan.drop(torch.tensor(dropped), reason="another")
        InfluenceFilter(**settings).on_rollout_end(None, Policy(), plan)
        found[name] = plan.weights
    plan = UpdatePlan(episodes=rollout(rows))
    InfluenceFilter(rule="reward", baselines="kept").on_rollout_end(None, Compared(), plan)
    return {**found, BASELINES: plan.episodes.advantages, GAIN: predicted_gain(rows)}


def predicted_gain(rows: list[int]) -> Tensor:
    """Return the fields of the estimate, then the gain along each of 8 groups, shape [12]."""
    generator = torch.Generator().manual_seed(4)
    batches = list(torch.randn(8, 1, 4, generator=generator, dtype=torch.float64))
    influence = InfluenceFilter(demonstrations=batches)
    predictor = influence.selector.predictor = GainPredictor()
    influence.on_rollout_end(None, Quadratic(), UpdatePlan(episodes=rollout(rows)))
    assert predictor.newest is not None
    *fields, along_groups = predictor.newest
    return torch.tensor([*fields, *along_groups], dtype=torch.float64)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(Path(folder) / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(weights_of(HALVES[rank]), Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
