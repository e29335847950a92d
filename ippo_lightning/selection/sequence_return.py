"""The return of fresh responses to validation prompts, as a target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.maths import last_steps, masked_row_sum
from ippo_lightning.records import Episodes, UpdatePlan
from ippo_lightning.records.pass_size import MaxTokens, require_max_tokens
from ippo_lightning.selection.fresh_rollouts import fresh_rollout
from ippo_lightning.selection.rollout_targets import (
    batches_of,
    episode_costs,
    minus_sequence_return,
    require_episodes,
    require_num_prompts,
)
from ippo_lightning.selection.targets import Target, TargetLoss


@dataclass(frozen=True, kw_only=True)
class SequenceReturn(Target):
    """The return of fresh responses to validation prompts; for modules of language models.

    loss = - mean over the responses of all ranks of A_last * log pi(y|x); A_last is the advantage at the last token of
    a response, and log pi(y|x) the sum over its tokens.
    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), section 5, with the opposite sign; they take 1024 responses.

    Each gradient costs a rollout of this size. An evaluation of the same prompts is then not independent of training;
    the test split is.

    Args:
        num_prompts: number of prompts of the data module's `val_dataloader()`, the first ones, over all ranks; null for
            all. Each gets `sampling.num_responses` responses.
        max_tokens: tokens of a pass, padding included, >= 1; `auto` is 16384. A pass that does not fit in the device's
            memory is halved.

    Raises:
        UserError: a number out of its range.
    """

    num_prompts: int | None = 64
    max_tokens: MaxTokens = "auto"

    def __post_init__(self) -> None:
        require_num_prompts(self.num_prompts)
        require_max_tokens("target.max_tokens", self.max_tokens)

    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Sample responses, and return minus the mean of A_last * log pi over them.

        Raises:
            UserError: the module has no method `score` or no stages of an iteration, or there are no prompts.
        """
        require_episodes(self, module, plan.episodes)
        episodes = fresh_rollout(self, module, trainer, num_prompts=self.num_prompts)
        rows = torch.arange(len(episodes), device=episodes.device)
        return TargetLoss(
            partial(minus_sequence_return, factors=_last_advantages),
            batches_of(episodes, rows[episodes.lengths > 0], self.max_tokens),
            is_of_rank=True,
            costs=episode_costs,
            max_tokens=self.max_tokens,
            num_sampled=len(episodes),
        )


def _last_advantages(episodes: Episodes) -> Tensor:
    return masked_row_sum(values=episodes.advantages, mask=last_steps(mask=episodes.mask))
