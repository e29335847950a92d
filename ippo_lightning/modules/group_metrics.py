"""What the log shows of groups of responses."""

from __future__ import annotations

import torch

from ippo_lightning.algorithms import AdvantageEstimator
from ippo_lightning.distributed.collectives import all_reduce_sum
from ippo_lightning.maths import equal_rewards
from ippo_lightning.records import Episodes


def group_metrics(episodes: Episodes, advantages: AdvantageEstimator) -> dict[str, float]:
    """Return `rollout/zero_variance_fraction`, of the groups of all ranks; nothing if the estimator reads no groups.

    Args:
        episodes: of this rank, all that were rolled out; no group is on two ranks.
        advantages: the estimator. All ranks have the same.
    """
    if not advantages.needs_groups:
        return {}
    counts = torch.stack(equal_rewards(rewards=episodes.outcome_rewards, group=episodes.group))
    equal, total = all_reduce_sum(counts.double()).tolist()
    # Callbacks may allocate one response to each prompt, and then there is no group.
    return {"rollout/zero_variance_fraction": equal / total} if total else {}
