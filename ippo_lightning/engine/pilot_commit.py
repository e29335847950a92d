"""Pilot responses: each prompt gets a few, and the prompts whose rewards vary most get the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, any_rank, rank
from ippo_lightning.engine.chosen_groups import ChosenGroups
from ippo_lightning.errors import UserError, require_choice, require_range
from ippo_lightning.maths import equal_rewards, order_by_variance
from ippo_lightning.records import Episodes, RolloutPlan

Record = TypeVar("Record", bound=Episodes)
PilotRule = Literal["variance", "random"]


@dataclass(frozen=True, kw_only=True)
class PilotCommit:
    """Give each prompt of a batch a few responses, and all others to the prompts whose rewards vary most.

    The responses to a chosen prompt are its pilots and the others, `sampling.num_responses` together. The pilots of
    the other prompts are counted in the log and not trained on. On several ranks, each chooses among its own prompts.
    Source: Pilot-Commit, arXiv 2605.26606. The paper chooses by thresholds of the pilots' success rate, defers prompts
    that are too hard, evicts solved ones, and keeps pilots for some steps in a buffer. Here everything happens within
    one iteration: pilots of an earlier step are of another policy, and a group baseline and a ratio of 1 before the
    first step suppose one policy. So each iteration also samples as many episodes.

    Args:
        num_pilots: responses that each prompt of the batch gets, from 1 to `sampling.num_responses` - 1.
        num_prompts: prompts that get the rest, on each rank, fewer than the batch has; null for a quarter of them.
        rule: `variance` chooses by the rewards of the pilots, see `ippo_lightning.maths.order_by_variance`; `random`
            is its control, with the same pilots.
        seed: of random choices.

    Raises:
        UserError: an argument out of its range.
    """

    num_pilots: int = 2
    num_prompts: int | None = None
    rule: PilotRule = "variance"
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("pilot_commit.num_pilots", self.num_pilots, at_least=1, integer=True)
        if self.num_prompts is not None:
            require_range("pilot_commit.num_prompts", self.num_prompts, at_least=1, integer=True)
        require_choice("pilot_commit.rule", self.rule, get_args(PilotRule))
        # The product with a large factor must stay within 64 bits.
        require_range("pilot_commit.seed", self.seed, at_least=0, at_most=2**32 - 1, integer=True)

    def num_chosen(self, size: int) -> int:
        """Return how many prompts get all responses.

        Args:
            size: prompts of the batch, >= 1.
        """
        return min(max(size // 4, 1) if self.num_prompts is None else self.num_prompts, size)

    def most_rows(self, size: int, *, num_responses: int) -> int:
        """Return the most responses that are sampled together: all pilots, or all others.

        Args:
            size: prompts of the batch, >= 1.
            num_responses: to each prompt that is chosen.
        """
        return max(size * self.num_pilots, self.num_chosen(size) * (num_responses - self.num_pilots))


def commit(
    plan: RolloutPlan, collect: Callable[..., Record], *, settings: PilotCommit, iteration: int
) -> ChosenGroups[Record]:
    """Sample pilots, choose prompts by their rewards, and sample the rest of the responses to these.

    All ranks collect twice, also those with fewer prompts: a rollout may be a collective.

    Args:
        plan: of all prompts of this rank, with the number of responses that each gets if it is chosen.
        collect: returns the episodes of a plan, with their `outcome_rewards`; `group` is the place of the prompt. With
            `may_be_empty`, perhaps none.
        settings: of the module.
        iteration: counted from 0; each has random numbers of its own.

    Returns:
        The responses to each prompt next to each other, the pilots first.

    Raises:
        UserError: a group that is not the place of a prompt; a plan that has no responses but pilots.
    """
    plan.sealed = True
    # On all ranks, because the others would wait for this one in the second rollout.
    if any_rank(not bool((plan.counts > settings.num_pilots).any()), device=plan.counts.device):
        raise UserError(
            f"pilot_commit: a callback plans at most {settings.num_pilots} responses to each prompt, which are its "
            f"pilots; expected more for at least one prompt of each rank"
        )
    first = plan.counts.clamp(max=settings.num_pilots)
    pilots = collect(RolloutPlan(batch=plan.batch, counts=first))
    _require_places(pilots, first)
    # Large factors, so that the next seed or rank does not repeat the draw of another iteration.
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + iteration + 1_000_000_007 * rank())
    chosen = _chosen(pilots, counts=plan.counts.cpu(), settings=settings, generator=generator)
    rest = torch.zeros_like(first)
    rest[chosen] = (plan.counts - first)[chosen]
    # Perhaps none that is finite: this rank has its pilots.
    others = collect(RolloutPlan(batch=plan.batch, counts=rest), may_be_empty=True)
    _require_places(others, rest)
    everything = type(pilots).concat([pilots, others])
    everything = everything.select(everything.group.argsort(stable=True))
    is_chosen = torch.isin(everything.group, chosen.to(everything.group))
    episodes = everything.select(is_chosen.nonzero().flatten())
    return ChosenGroups(episodes=episodes, sampled=everything, metrics=_metrics(pilots, everything, episodes))


def _chosen(pilots: Episodes, *, counts: Tensor, settings: PilotCommit, generator: torch.Generator) -> Tensor:
    """Return the places of the prompts that get the rest of their responses; at least one has a rest."""
    size = len(counts)
    if settings.rule == "random":
        order = torch.randperm(size, generator=generator)
    else:
        order = order_by_variance(
            rewards=pilots.outcome_rewards, group=pilots.group, num_groups=size, generator=generator
        )
    # A callback may have left prompts without a rest, and all pilots of a prompt may be broken.
    sampled = pilots.group.unique().cpu()
    have_rest = order[(counts > settings.num_pilots)[order]]
    usable = have_rest[torch.isin(have_rest, sampled)]
    return (usable if len(usable) else have_rest)[: settings.num_chosen(len(sampled))]


def _require_places(episodes: Episodes, counts: Tensor) -> None:
    found = episodes.group.bincount(minlength=len(counts)).cpu()
    if len(found) > len(counts) or bool((found > counts.cpu()).any()):
        raise UserError(
            "pilot_commit: the groups of the rollout are not the places of its prompts in the batch; expected a "
            "rollout that numbers them so"
        )


def _metrics(pilots: Episodes, everything: Episodes, episodes: Episodes) -> dict[str, float]:
    rewards = pilots.outcome_rewards.double()
    equal, groups = equal_rewards(rewards=episodes.outcome_rewards, group=episodes.group)
    sums = torch.stack(
        [
            rewards.new_tensor(len(pilots)),
            rewards.sum(),
            rewards.new_tensor(len(everything) - len(episodes)),
            equal.double(),
            groups.double(),
        ]
    )
    count, reward, discarded, num_equal, num_groups = all_reduce_sum(sums).tolist()
    return {
        "pilot_commit/pilots": count,
        "pilot_commit/pilots_discarded": discarded,
        "pilot_commit/reward_mean": reward / count,
        "pilot_commit/zero_variance_fraction": num_equal / max(num_groups, 1.0),
    }
