"""What callbacks decide about a minibatch before its optimizer step, at the parameters of that step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ippo_lightning.engine.denominators import Divisors, counted, row_sizes
from ippo_lightning.engine.hooks import call_hook
from ippo_lightning.engine.load_balancing import Work
from ippo_lightning.engine.settings import UpdateSettings
from ippo_lightning.records import UpdatePlan

MinibatchHook = Callable[[UpdatePlan], None]
"""Changes the plan of one minibatch; all ranks call it together, also those without a row."""


def minibatch_hook(callbacks: Iterable[object], trainer: object, module: object) -> MinibatchHook | None:
    """Return what calls `on_minibatch_start` of the callbacks that decide about minibatches, None without any.

    Args:
        callbacks: one that has the hook may have `changes_minibatches`, False if it does not use the hook in this run.
        trainer: passed on.
        module: passed on.
    """
    chosen = [
        callback
        for callback in callbacks
        if callable(getattr(callback, "on_minibatch_start", None)) and getattr(callback, "changes_minibatches", True)
    ]
    return (lambda plan: call_hook(chosen, "on_minibatch_start", trainer, module, plan)) if chosen else None


class Step(NamedTuple):
    """What one optimizer step trains on."""

    work: Work
    """Of this rank."""
    rows: Tensor
    """Positions in the work, shape [rows], int64."""
    divisors: Divisors
    """Of its losses."""
    num_kept: Tensor | float = 0.0
    """Rows of this rank with a weight above 0; one that some layers drop counts by those that keep it."""


def planned_step(step: Step, hook: MinibatchHook, *, settings: UpdateSettings) -> Step:
    """Return the step that is left after callbacks have decided about its rows; all ranks call this together.

    Args:
        step: as it was planned.
        hook: decides.
        settings: whether the critic still learns from rows of weight 0, and what divides the losses.
    """
    work, rows, num_kept = _with_new_weights(step.work, step.rows, hook, settings=settings)
    if settings.denominator == "kept" or step.divisors.counts is not None:
        return Step(work, rows, step.divisors, num_kept)
    # "all" divides by what was there before
    before, after = (row_sizes(work.episodes, chosen, settings).double() for chosen in (step.rows, rows))
    policy_count, _ = counted(before, step.work.weights[step.rows], torch.ones_like(before))
    _, value_count = counted(after, torch.ones_like(after), torch.ones_like(after))
    return Step(work, rows, step.divisors._replace(counts=(policy_count, value_count)), num_kept)


def _with_new_weights(
    work: Work, rows: Tensor, hook: MinibatchHook, *, settings: UpdateSettings
) -> tuple[Work, Tensor, Tensor]:
    """Return this rank's work with the weights of one step, the rows that it trains on, and how many are kept."""
    plan = UpdatePlan(episodes=work.episodes.select(rows))
    before = work.weights[rows]
    # As a change of the plan, so that a rule sees no row that the rollout's plan has dropped.
    if bool((before != 1).any()):
        plan.scale(before, reason="rollout")
    hook(plan)
    plan.sealed = True
    weights = work.weights.clone()
    weights[rows] = plan.weights.to(weights)
    kept, layers = plan.keep.double(), None
    if plan.layers is not None:
        kept = kept * plan.layers.keep.double().mean(dim=0)
        layers = plan.layers.placed(rows, num_rows=len(weights))
    trained = rows if settings.train_value_on_dropped else rows[plan.keep]
    return work._replace(weights=weights, layers=layers), trained, kept.sum()
