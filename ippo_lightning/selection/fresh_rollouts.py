"""Fresh responses to validation prompts, for targets that are not made from the rollout itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ippo_lightning.distributed.collectives import all_reduce_max, rank, world_size
from ippo_lightning.errors import UserError
from ippo_lightning.records import Episodes
from ippo_lightning.selection.targets import Target

_STAGES = ("plan_rollout", "rollout", "compute_rewards", "compute_advantages", "evaluation_stream")
_ITERATION_STRIDE = 1_000_003
"""Between the numbers of the random streams of two iterations: more than the batches of an evaluation."""


def fresh_rollout(
    target: Target, module: Any, trainer: Any, *, num_prompts: int | None, with_advantages: bool = True
) -> Episodes:
    """Sample responses to validation prompts at the current parameters, with the rewards and advantages of training.

    All ranks call this together, and each has prompts of its own. Training's random stream, and what the reward keeps
    for the log, do not change.

    Args:
        target: for messages.
        module: with the stages of an iteration.
        trainer: has the data module.
        num_prompts: of all ranks, the first ones; None for all.
        with_advantages: whether advantages are needed.

    Returns:
        At least one response. Those with NaN or infinity in a number that is needed are left out.

    Raises:
        UserError: the module has no such stages, or there are fewer prompts than ranks.
    """
    name = type(target).__name__
    missing = next((stage for stage in _STAGES if not callable(getattr(module, stage, None))), None)
    if missing is not None:
        raise UserError(f"InfluenceFilter.target: {name} needs the method {missing} of {type(module).__name__}")
    batch = _prompts(name, trainer, num_prompts=num_prompts)
    fewest = -all_reduce_max(-len(batch.get("prompts", ())), device=next(module.parameters()).device)
    if fewest < 1:  # decided over all ranks, which otherwise wait for the one that raises
        raise UserError(
            f"InfluenceFilter.target: {name} needs a validation prompt for each rank, and val_dataloader() and "
            f"num_prompts give {len(batch.get('prompts', ()))} prompts to a rank of {world_size()}"
        )
    # Another stream in each iteration, and the same one after a resume.
    number = _ITERATION_STRIDE * (int(getattr(module, "iteration", 0)) + 1)
    with (
        module.evaluation_stream(number, of_rank=rank()),
        _kept_parts(getattr(module, "reward", None)),
        torch.no_grad(),
    ):
        episodes: Episodes = module.compute_rewards(module.rollout(module.plan_rollout(batch)))
        if with_advantages:
            episodes = module.compute_advantages(episodes)
    needed = episodes.advantages.sum(dim=1) if with_advantages else episodes.outcome_rewards
    return episodes.select((needed.isfinite() & episodes.outcome_rewards.isfinite()).nonzero().flatten())


def _prompts(name: str, trainer: Any, *, num_prompts: int | None) -> dict[str, list[Any]]:
    """Return this rank's part of the first prompts, as one batch: ranks then make equally many rollouts."""
    datamodule = getattr(trainer, "datamodule", None)
    loader = getattr(datamodule, "val_dataloader", None)
    if loader is None:
        owner = "a run without a data module" if datamodule is None else type(datamodule).__name__
        raise UserError(f"InfluenceFilter.target: {name} needs validation prompts, and {owner} has no val_dataloader()")
    # the loader gives every n-th row to a rank
    limit = None if num_prompts is None else len(range(rank(), num_prompts, world_size()))
    columns: dict[str, list[Any]] = {}
    for batch in loader():
        if not isinstance(batch, Mapping) or "prompts" not in batch:
            found = f"{type(datamodule).__name__}.val_dataloader() has no column prompts"
            raise UserError(f"InfluenceFilter.target: {name} needs validation prompts, and {found}")
        for column, entries in batch.items():
            columns.setdefault(column, []).extend(entries)
        if limit is not None and len(columns["prompts"]) >= limit:
            break
    return {column: list(itertools.islice(entries, limit)) for column, entries in columns.items()}


@contextmanager
def _kept_parts(reward: Any) -> Iterator[None]:
    """Inside the block, a reward may be called; the parts that it keeps for the log stay those of the rollout."""
    parts = getattr(reward, "last_parts", None)
    try:
        yield
    finally:
        if parts is not None:
            reward.last_parts = parts
