"""Dynamic sampling: other prompts replace those whose rewards are all equal, in a bounded number of rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from ippo_lightning.distributed.collectives import all_reduce_max, all_reduce_sum, gather_rows, world_size
from ippo_lightning.engine.chosen_groups import ChosenGroups
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.maths import rewards_differ
from ippo_lightning.records import Batch, Episodes

Record = TypeVar("Record", bound=Episodes)


@dataclass(frozen=True, kw_only=True)
class DynamicSampling:
    """Replace prompts whose responses all have the same reward by other prompts: a group baseline learns nothing there.

    An iteration samples responses to the first `num_prompts` prompts of its batch. The other prompts of the batch are
    its reserve: each round takes as many of them as groups are missing. What is left of the reserve is not sampled, and
    comes again with the next epoch.
    Source: Yu et al. 2025, DAPO, arXiv 2503.14476, section 3.2.

    Args:
        num_prompts: prompts with different rewards that an iteration trains on, on each rank. Several ranks look for
            their sum together, so that no rank waits for the bad luck of another one. null for a part of the batch that
            leaves as many prompts for each round: its size divided by 1 + `max_rounds`.
        max_rounds: how often prompts are replaced, at the most, >= 1. After that, or without a prompt in reserve, the
            iteration goes on with what there is.

    Raises:
        UserError: a number out of its range.
    """

    num_prompts: int | None = None
    max_rounds: int = 3

    def __post_init__(self) -> None:
        if self.num_prompts is not None:
            require_range("dynamic_sampling.num_prompts", self.num_prompts, at_least=1, integer=True)
        require_range("dynamic_sampling.max_rounds", self.max_rounds, at_least=1, integer=True)

    def num_first(self, size: int) -> int:
        """Return how many prompts of a batch are sampled at first.

        Args:
            size: prompts of the batch, >= 1.
        """
        wanted = max(size // (1 + self.max_rounds), 1) if self.num_prompts is None else self.num_prompts
        return min(wanted, size)

    def most_rows(self, size: int, *, num_responses: int) -> int:
        """Return the most responses that are sampled together: those to the first prompts.

        Args:
            size: prompts of the batch, >= 1.
            num_responses: to each prompt.
        """
        return self.num_first(size) * num_responses


class Reserve:
    """The prompts of a batch that are not sampled at first.

    Args:
        batch: of this rank, by column, with one entry per prompt in each.
        settings: how many prompts are sampled at first; `first` contains fewer if the batch does.

    Raises:
        UserError: a column has not one entry per prompt.
    """

    def __init__(self, batch: Batch, settings: DynamicSampling) -> None:
        sizes = {name: len(column) if hasattr(column, "__len__") else None for name, column in batch.items()}
        self._size = sizes.get("prompts") or 0
        for name, size in sizes.items():
            if size != self._size:
                found = "no entries" if size is None else f"{size} entries"
                raise UserError(
                    f"dynamic_sampling: column {name} of a batch has {found} for {self._size} prompts; expected one "
                    "entry per prompt"
                )
        self._batch, self._taken = batch, 0
        self.first = self.take(settings.num_first(self._size))

    def __len__(self) -> int:
        return self._size - self._taken

    def take(self, count: int) -> Batch:
        """Return the next prompts as a batch, each prompt once.

        Args:
            count: at most as many as are left.
        """
        start, self._taken = self._taken, self._taken + count
        return {name: column[start : self._taken] for name, column in self._batch.items()}


def fill_groups(
    first: Record, reserve: Reserve, collect: Callable[[Batch], Record], *, wanted: int, max_rounds: int
) -> ChosenGroups[Record]:
    """Return the groups whose rewards differ, with those of prompts in reserve in place of the others.

    The rewards compared are `outcome_rewards`: what the reward function returned, with a penalty for length that is a
    part of it, and without the KL penalty, with which no two rewards are ever equal. A group stays or goes as a whole.

    All ranks make the same number of rounds, each with as many prompts as every other rank: a rollout may be a
    collective.

    Args:
        first: of this rank, with its `outcome_rewards`.
        reserve: of this rank.
        collect: returns the episodes of more prompts, with their rewards, perhaps none; their group numbers may be any.
        wanted: groups of this rank that were planned.
        max_rounds: limit of the rounds.

    Returns:
        The groups in the order of sampling; a placeholder if no group of this rank has different rewards.
    """
    found = _with_different_rewards(first)
    kept, sampled, rounds = [found], [first], 0
    total = _sum(wanted, like=first)
    missing = total - _sum(_num_groups(found), like=first)
    while missing > 0 and rounds < max_rounds:
        # As many on each rank, so that no rank samples while others wait: at most one prompt per rank too many.
        count = _smallest(min(math.ceil(missing / world_size()), len(reserve)), like=first)
        if count == 0:
            break
        rounds += 1
        more = collect(reserve.take(count))
        # Counted on from the groups before, so that no two prompts share a number.
        sampled.append(more.evolve(group=more.group + max(int(part.group.max()) for part in sampled if len(part)) + 1))
        found = _at_most(_with_different_rewards(sampled[-1]), missing)
        kept.append(found)
        missing -= _sum(_num_groups(found), like=first)
    everything = type(first).concat(sampled)
    filled = [part for part in kept if len(part)]
    equal = _num_groups(everything) - _num_groups(_with_different_rewards(everything))
    return ChosenGroups(
        # Without any row, this rank could not take part in the collectives that follow.
        episodes=type(first).concat(filled) if filled else _first_group(first),
        sampled=everything,
        is_placeholder=not filled,
        metrics={
            "dynamic_sampling/rounds": float(rounds),
            "dynamic_sampling/prompts": float(_sum(_num_groups(everything), like=first)),
            "dynamic_sampling/groups_dropped": float(_sum(equal, like=first)),
            "dynamic_sampling/filled_fraction": (total - missing) / total,
        },
    )


def _with_different_rewards(episodes: Record) -> Record:
    differ = rewards_differ(rewards=episodes.outcome_rewards, group=episodes.group)
    return episodes.select(differ.nonzero().flatten())


def _at_most(episodes: Record, missing: int) -> Record:
    """Return the groups of this rank that are among the first `missing` ones of all ranks."""
    groups = episodes.group.unique()
    _, mine = gather_rows(groups)
    allowed = groups[: max(missing - mine.start, 0)]
    return episodes.select(torch.isin(episodes.group, allowed).nonzero().flatten())


def _first_group(episodes: Record) -> Record:
    return episodes.select((episodes.group == episodes.group[0]).nonzero().flatten())


def _num_groups(episodes: Episodes) -> int:
    return len(episodes.group.unique())


def _sum(count: int, *, like: Episodes) -> int:
    """Return the sum over all ranks."""
    return int(all_reduce_sum(torch.tensor(count, device=like.device)))


def _smallest(count: int, *, like: Episodes) -> int:
    """Return the smallest number of all ranks."""
    return -all_reduce_max(-count, device=like.device)
