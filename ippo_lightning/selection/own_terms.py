"""Leave the part of a row out of its own score, if the target is made from the rows that are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.influence import EpisodeScores, row_products
from ippo_lightning.records import Episodes
from ippo_lightning.selection.buffer_view import BufferView
from ippo_lightning.selection.module_interface import ModuleInterface
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.targets import OwnTerms, Target, TargetLoss

_MOST_NUMBERS = 2**28
"""Most numbers that the gradients of a pass's rows may have: 1 GiB in float32."""


def require_own_terms(target: Target, scoring: ScoringSettings, *, by_groups: bool) -> None:
    """Refuse settings under which a row's own part cannot be left out.

    Args:
        target: of the filter.
        scoring: settings.
        by_groups: whether rows are dropped by the votes of groups.

    Raises:
        UserError: names the setting, and what would be right.
    """
    if not target.leaves_out_self:
        return
    name = f"and {type(target).__name__} leaves a row out of its own target"
    if scoring.method not in ("hooks", "per_episode"):
        raise UserError(f"InfluenceFilter.scoring.method: {scoring.method}, {name}; use hooks or per_episode")
    if scoring.normalise == "cosine":
        raise UserError(f"InfluenceFilter.scoring.normalise: cosine, {name}; use none or length")
    if scoring.refresh_every_n_iterations > 1:
        found = scoring.refresh_every_n_iterations
        raise UserError(f"InfluenceFilter.scoring.refresh_every_n_iterations: {found}, {name}; set it to 1")
    if by_groups:
        raise UserError(f"InfluenceFilter.drop_when: all, {name}; use mean")


def require_one_rollout(target: TargetLoss, module: Any, *, part: int | None) -> None:
    """Refuse runs in which a row's own part cannot be left out.

    Args:
        target: the loss and its batches.
        module: under training.
        part: number of the micro-batch in its optimizer step, None without gradient accumulation.

    Raises:
        UserError: rows come in several micro-batches, which share a target, or the model is sharded.
    """
    if target.own is None:
        return
    problem = "gradient accumulation" if part is not None else "a sharded model" if is_sharded(module) else None
    if problem is not None:
        raise UserError(f"InfluenceFilter.target: {problem} does not allow to leave a row out of its own target")


def without_own(scores: Tensor, products: Tensor, weights: Tensor, *, total: Tensor) -> Tensor:
    """Return scores along the target of the other rows, from those along the target of all rows.

    The target of all rows has the gradient V = sum_j h_j / W, with W = sum_j w_j over the rows of all ranks. That of
    the others is (W V - h_i) / (W - w_i), so the score is (W s_i - p_i) / (W - w_i), with p_i = <g_i, h_i>.

    Args:
        scores: s_i, shape [..., rows].
        products: p_i, 0 for a row that is not in the target, shape [..., rows].
        weights: w_i, of this rank's rows, shape [rows], float64.
        total: W, of all ranks' rows, shape [], float64.

    Returns:
        Shape of `scores`; 0 for a row without others.
    """
    weights, total = weights.to(scores.device), total.to(scores.device)
    others = total - weights
    # a rank without a row in the target has its empty products on the CPU
    products = products.to(scores.device)
    left = (scores.double() * total - products.double()) / torch.where(others > 0, others, 1.0)
    return torch.where(others > 0, left, 0.0).to(scores)


def own_products(
    pl_module: Any,
    episodes: Episodes | BufferView,
    own: OwnTerms,
    metric: Mapping[str, Tensor],
    chosen: Sequence[Tensor],
    *,
    settings: ScoringSettings,
    interface: ModuleInterface,
    checksum_batches: int = 0,
) -> EpisodeScores:
    """Return the inner product of each row's gradient with that of its part of the target, shape [1, rows].

    Args:
        pl_module: what the losses are of.
        episodes: of this rank.
        own: what each row adds to the target.
        metric: parameter name to the factors of the target's gradient.
        chosen: the rows of each pass, shape [rows] each.
        settings: how scores are made.
        interface: gives the losses that are scored.
        checksum_batches: not used, because plain autograd has checked the scores.
    """
    others = own.losses
    limit = _rows_per_pass(metric)
    found = row_products(
        pl_module,
        lambda module, rows: interface.episode_losses(module, episodes.select(rows)),
        None if others is None else lambda module, rows: others(module, episodes.select(rows)),
        [part for rows in chosen for part in rows.split(limit)],
        metric,
        method=settings.method,
    )
    if settings.normalise != "length" or not chosen:
        return found
    # as scores are: the parts are those before normalisation
    lengths = torch.cat([lengths_of(episodes.select(rows)) for rows in chosen])
    return EpisodeScores(found.scores / lengths.to(found.scores).clamp(min=1), found.by_parameter)


def lengths_of(part: Any) -> Tensor:
    """Return how many steps of each row count, shape [rows].

    Args:
        part: rows of a rollout, or of a foreign buffer.
    """
    lengths: Tensor = part.lengths if isinstance(part, Episodes) else BufferView(part).lengths
    return lengths


def _rows_per_pass(metric: Mapping[str, Tensor]) -> int:
    return max(_MOST_NUMBERS // max(sum(block.numel() for block in metric.values()), 1), 1)


class ScoresOfPasses(Protocol):
    """Scores the rows of passes."""

    def __call__(self, chosen: Sequence[Tensor], /, *, checksum_batches: int) -> EpisodeScores:
        """Return scores [directions, rows] in the order of the passes."""
