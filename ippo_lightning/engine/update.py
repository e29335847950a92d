"""The update: epochs of minibatches over what a sealed plan keeps, with all ranks in lock step."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_max, all_reduce_sum, any_rank, world_size
from ippo_lightning.engine.denominators import Divisors, counted, counts_per_step, row_sizes
from ippo_lightning.engine.layer_steps import LayerStep
from ippo_lightning.engine.load_balancing import Work, rebalance
from ippo_lightning.engine.minibatch_plans import MinibatchHook, Step, planned_step
from ippo_lightning.engine.nonfinite import name_broken
from ippo_lightning.engine.settings import UpdateSettings
from ippo_lightning.records import Episodes, Minibatch, Pass, UpdatePlan
from ippo_lightning.records.out_of_memory import MEMORY_ERRORS, is_out_of_memory
from ippo_lightning.records.pass_size import PassSize

_LOG = logging.getLogger(__name__)


class UpdateStages(Protocol):
    """What the update needs from a module."""

    pass_size: PassSize
    """Tokens of a micro-batch; it becomes smaller if memory runs out."""

    def clear_gradients(self) -> None:
        """Remove all gradients, without a step."""

    def loss_through_wrapper(self, minibatch: Minibatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return loss [] and sums for the log, computed through the wrapper that averages gradients over ranks.

        Args:
            minibatch: its denominators are those of the whole optimizer step.
        """

    def backward_loss(self, loss: Tensor) -> None:
        """Add to the gradients."""

    def no_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """Return a context in which gradients are not averaged over ranks, for all parts of a step but the last.

        Args:
            enabled: False for a context without effect.
        """

    def take_step(self) -> float:
        """Clip, step, clear the gradients; return the gradient norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite; no step was taken.
        """

    def why_not_finite(self, minibatch: Minibatch, /) -> str | None:
        """Return "loss" or "gradient" if that of this minibatch alone is not finite; no gradient stays behind.

        Args:
            minibatch: one row.
        """

    def keep_skipped_step(self, message: str) -> None:
        """Note the minibatch that just failed, before it is repeated without its broken rows; all ranks call this.

        Args:
            message: names these rows.
        """

    def passes(
        self, costs: Tensor, *, max_rows: int, max_tokens: int | None = None, sort: bool = True
    ) -> Iterator[Pass]:
        """Divide rows into passes; if forwards are collectives, all ranks make equally many (see `records.passes`).

        Args:
            costs: shape [rows], int64, in tokens.
            max_rows: at most so many rows per pass.
            max_tokens: at most so many tokens per pass, padding included; None for no limit.
            sort: whether the cheapest rows come first.
        """


class _Sums(NamedTuple):
    """Sums for the log over the rows of a step, on all ranks; one tensor, so that steps are added in one operation."""

    names: tuple[str, ...]
    values: Tensor
    """[names] float64."""


class UpdateOutcome(NamedTuple):
    """What an update did, over all ranks."""

    kept_fraction: float
    """Of the rows that were sampled; of choices by minibatch or layer, the mean over epochs and layers."""
    optimizer_steps: int
    tokens_trained: int
    metrics: dict[str, float]


def run_update(
    stages: UpdateStages, plan: UpdatePlan, settings: UpdateSettings, *, on_minibatch: MinibatchHook | None = None
) -> UpdateOutcome:
    """Train on the plan's rows for `num_epochs`; do nothing if no rank has a row to train on.

    Args:
        stages: usually a `PPOModule`.
        plan: sealed; its weights multiply the policy losses.
        settings: of the update.
        on_minibatch: decides about the rows of each step before it; None to train on all of them.

    Returns:
        Kept fraction, optimizer steps, and metrics summed over ranks.

    Raises:
        FloatingPointError: a gradient norm is not finite; the parameters are those before that step.
    """
    device = plan.weights.device
    # Of all ranks: callbacks decide from the kept fraction, and the ranks have to decide alike.
    kept, total = all_reduce_sum(
        torch.stack([plan.keep.sum(), torch.tensor(len(plan.weights), device=device)])
    ).tolist()
    rows = torch.arange(len(plan.weights), device=device)
    if not settings.train_value_on_dropped:
        rows = rows[plan.keep]
    # The placeholder is row 0, dropped or not: a rank without work still takes part in the collectives, at weight 0.
    work = rebalance(Work(plan.episodes.select(rows), plan.weights[rows], rows, plan.episodes.select([0])))
    trained = torch.arange(len(work.weights), device=device)
    num_minibatches = _num_minibatches(len(trained), of=len(plan.weights), settings=settings, device=device)
    # "all" divides by what was there before filtering, so the step shrinks with the kept fraction
    shrink = total / kept if settings.denominator == "all" and kept else 1.0
    divisors = Divisors(shrink, counts_per_step(work, settings, num_minibatches))
    totals: dict[tuple[str, ...], Tensor] = {}
    norms: list[float] = []
    skipped = torch.zeros(len(work.weights), dtype=torch.bool, device=device)
    used = torch.zeros((), dtype=torch.float64, device=device)
    for _ in range(settings.num_epochs if num_minibatches else 0):
        for rows in _shuffled(trained, num_minibatches):
            one = Step(work, rows[~skipped[rows]] if skipped.any() else rows, divisors)
            if on_minibatch is not None:
                one = planned_step(one, on_minibatch, settings=settings)
                used += one.num_kept
                if not any_rank(len(one.rows) > 0, device=device):
                    continue  # no rank has a row left: a step would only move by its momentum
            sums, norm = _step(stages, one.work, one.rows, skipped, settings=settings, divisors=one.divisors)
            totals[sums.names] = totals.get(sums.names, 0.0) + sums.values
            norms.append(norm)
    by_name = _by_name(totals)
    metrics = _summary(by_name, norms)
    metrics["update/nonfinite_episodes"] = float(all_reduce_sum(skipped.sum().double()))
    tokens = by_name.get("tokens", 0.0)
    metrics["update/tokens_trained"] = tokens
    if on_minibatch is not None:  # mean over the epochs, of which each may keep others
        kept = float(all_reduce_sum(used)) / settings.num_epochs
    return UpdateOutcome(kept / total, optimizer_steps=len(norms), tokens_trained=int(tokens), metrics=metrics)


def _num_minibatches(num_trained: int, *, of: int, settings: UpdateSettings, device: torch.device) -> int:
    """Return how many every rank goes through per epoch: as many as the fullest rank needs."""
    wanted = math.ceil((of if settings.steps_after_filtering == "same" else num_trained) / settings.minibatch_size)
    # With `same`, there may be more minibatches than rows; those beyond would be empty on every rank.
    return min(all_reduce_max(wanted, device=device), all_reduce_max(num_trained, device=device))


def _shuffled(rows: Tensor, num_minibatches: int) -> Iterator[Tensor]:
    """Yield near-equal parts, so that no minibatch is a leftover of one row; empty ones if this rank has too few."""
    # Drawn on the CPU, whose state a checkpoint contains on every machine: the order does not depend on the device.
    order = rows[torch.randperm(len(rows)).to(rows.device)]
    yield from torch.tensor_split(order, num_minibatches)


def _step(
    stages: UpdateStages, work: Work, rows: Tensor, skipped: Tensor, *, settings: UpdateSettings, divisors: Divisors
) -> tuple[_Sums, float]:
    """Take one optimizer step; if it is not finite, name the rows and stop, or repeat it without them.

    Args:
        stages: usually a `PPOModule`.
        work: of this rank.
        rows: the minibatch, without those that an earlier step left out.
        skipped: [rows] bool, True for rows that an earlier step left out; this function adds to it.
        settings: of the update.
        divisors: of the losses.

    Returns:
        Metric sums of all ranks, and the gradient norm.
    """
    sums = _accumulate(stages, work, rows, settings=settings, divisors=divisors)
    try:
        return sums, stages.take_step()
    except FloatingPointError as error:
        # The norm is that of the averaged gradient, so either all ranks come here or none.
        found = _broken_rows(stages, work, rows, settings=settings)
        # Together, because the step is repeated by all ranks. If each row alone is finite, there is none to leave out.
        if not any_rank(bool(found), device=rows.device):
            raise
        named = (
            name_broken(work.episodes, found, numbers=work.numbers)
            if found
            else "NaN or infinity in an episode of another rank"
        )
        if settings.on_nonfinite == "stop":
            raise FloatingPointError(named) from error
        _LOG.warning("%s; left out of this update", named)
        stages.keep_skipped_step(named)
    # Each repetition leaves out at least one row of some rank, so this ends.
    skipped[list(found)] = True
    return _step(stages, work, rows[~skipped[rows]], skipped, settings=settings, divisors=divisors)


def _broken_rows(stages: UpdateStages, work: Work, rows: Tensor, *, settings: UpdateSettings) -> dict[int, str]:
    """Try each row of a minibatch alone; return those whose loss or gradient is not finite."""
    found: dict[int, str] = {}
    episodes, places, weights = _or_placeholder(work, rows)
    for one in stages.passes(torch.ones_like(places), max_rows=1, sort=False):
        place = places[one.rows]
        alone = Minibatch(
            episodes=episodes.select(place),
            weights=weights[one.rows],
            value_weights=torch.ones_like(weights[one.rows]),
            policy_denominator=float(row_sizes(episodes, place, settings)),
            value_denominator=float(row_sizes(episodes, place, settings)),
        )
        # Not averaged over ranks: the NaN of one rank would reach all others, and their rows would look broken, too.
        with stages.no_sync(True):
            quantity = stages.why_not_finite(alone)
        if quantity is not None and one.is_real and len(rows):
            found[int(place)] = quantity
    return found


def _accumulate(
    stages: UpdateStages, work: Work, rows: Tensor, *, settings: UpdateSettings, divisors: Divisors
) -> _Sums:
    """Forward and backward over one minibatch; if memory runs out, again in micro-batches half as large."""
    try:
        return _accumulated(stages, work, rows, settings=settings, divisors=divisors)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the except block, whose traceback keeps the tensors of the failed pass alive. Other ranks may have
    # averaged gradients already, and would wait for this one.
    stages.pass_size.shrink_attempted(can_retry=world_size() == 1, what="episode")
    # The backward that failed may have left a part of its gradients, so the minibatch starts again.
    stages.clear_gradients()
    return _accumulate(stages, work, rows, settings=settings, divisors=divisors)


def _accumulated(
    stages: UpdateStages, work: Work, rows: Tensor, *, settings: UpdateSettings, divisors: Divisors
) -> _Sums:
    """Forward and backward over one minibatch, micro-batch by micro-batch; return metric sums of all ranks."""
    is_own = float(len(rows) > 0)
    layers = LayerStep(work, rows, settings=settings, divisors=divisors)
    episodes, rows, weights = _or_placeholder(work, rows)
    value_weights = torch.full_like(weights, is_own)
    # Before the first backward, over the whole minibatch and all ranks: the parts then add up to the same loss, however
    # the minibatch is cut into micro-batches and ranks.
    sizes = row_sizes(episodes, rows, settings).double()
    # Rows are counted and weights are not summed: the sum would cancel any factor that a minibatch has in common.
    policy_count, value_count = divisors.counts or counted(sizes, weights, value_weights)
    # gradients are averaged over ranks, so each rank's sum is scaled up by their number
    scale = 1.0 / world_size()
    totals: dict[str, Tensor] = {}
    # Selected first: a small minibatch is one pass, and its costs are not those of all rows of the iteration.
    whole = episodes.select(rows)
    costs, size = _costs(whole), stages.pass_size
    for one in stages.passes(costs, max_rows=settings.micro_batch_size, max_tokens=size.tokens):
        is_whole = _is_whole(one, whole)
        minibatch = Minibatch(
            episodes=whole if is_whole else whole.select(one.rows),
            weights=_of_pass(weights, one, is_whole=is_whole),
            value_weights=_of_pass(value_weights, one, is_whole=is_whole),
            # At least 1: where nothing counts, the loss is 0 / 1 and not 0 / 0.
            policy_denominator=max(policy_count, 1.0) * divisors.shrink * scale,
            value_denominator=max(value_count, 1.0) * scale,
        )
        largest = int((costs if is_whole else costs[one.rows]).max())
        measuring = size.measuring(rows.device, tokens=len(one.rows) * largest, largest=largest)
        # Around the forward too: DDP decides there whether the backward will average.
        with measuring, stages.no_sync(not one.is_last), layers.of_pass(one.rows):
            loss, sums = stages.loss_through_wrapper(minibatch)
            stages.backward_loss(loss)
        for name, value in sums.items():
            totals[name] = totals[name] + value if name in totals else value
    layers.leave_empty()
    # One reduction for all sums, stacked in the same order on every rank.
    names = tuple(sorted(totals))
    reduced = all_reduce_sum(torch.stack([totals[name] for name in names]).double())
    if scale != 1:  # only losses were scaled up with their denominators
        parts = zip(names, reduced, strict=True)
        reduced = torch.stack([value * scale if name.endswith("_loss") else value for name, value in parts])
    return _Sums(names, reduced)


def _costs(minibatch: Episodes) -> Tensor:
    """Return what each row takes of a pass, in tokens: its own steps, and the largest of the prompts."""
    # With one number for all prompts, the order of the rows is that of their steps: short responses share a pass.
    spans, costs = minibatch.spans, minibatch.cost()
    return spans + (costs - spans).max()


def _is_whole(one: Pass, minibatch: Episodes) -> bool:
    """Return whether a pass has all rows of a minibatch in their order."""
    return torch.equal(one.rows, torch.arange(len(minibatch), device=one.rows.device))


def _of_pass(weights: Tensor, one: Pass, *, is_whole: bool) -> Tensor:
    """Return the weights of a pass; a repeated one runs like any other and adds nothing."""
    chosen = weights if is_whole else weights[one.rows]
    return chosen if one.is_real else torch.zeros_like(chosen)


def _or_placeholder(work: Work, rows: Tensor) -> tuple[Episodes, Tensor, Tensor]:
    """Return episodes, rows and weights; if no row is left, one row with weight zero, for the collectives."""
    if len(rows):
        return work.episodes, rows, work.weights[rows]
    return work.placeholder, rows.new_zeros(1), work.weights.new_zeros(1)


def _by_name(totals: Mapping[tuple[str, ...], Tensor]) -> dict[str, float]:
    """Return each sum; a loss may return other sums in some steps than in others."""
    found: dict[str, float] = {}
    for names, values in totals.items():
        for name, value in zip(names, values.tolist(), strict=True):
            found[name] = found.get(name, 0.0) + value
    return found


def _summary(totals: Mapping[str, float], norms: list[float]) -> dict[str, float]:
    """Turn sums into means per step of an episode, or per optimizer step."""
    if not totals:
        return {}
    tokens = max(totals["tokens"], 1.0)
    steps = len(norms)
    return {
        "update/policy_loss": totals["policy_loss"] / steps,
        "update/value_loss": totals["value_loss"] / steps,
        "update/entropy": totals["entropy_sum"] / tokens,
        "update/approx_kl": totals["approx_kl_sum"] / tokens,
        "update/clip_fraction": totals["clipped_tokens"] / tokens,
        "update/ratio_mean": totals["ratio_sum"] / tokens,
        "update/gradient_norm": sum(norms) / steps,
    }
