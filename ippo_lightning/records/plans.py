"""What is about to be sampled, what the update is about to do with it, and what the update did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.records.episodes import Episodes
from ippo_lightning.records.layer_rows import LayerRows

Batch = Mapping[str, Any]
"""What a data loader gives, by column: for text `prompts` and `examples`, each with one entry per prompt. What a column
contains is up to the task."""


@dataclass(slots=True, kw_only=True)
class RolloutPlan:
    """What is about to be sampled: a callback may change it in `on_rollout_start`, before sampling."""

    batch: Batch
    """What the data loader gave."""
    counts: Tensor
    """[prompts] int64, how many responses each prompt gets."""
    history: list[str] = field(default_factory=list)
    """The reasons of all changes, oldest first."""
    sealed: bool = False
    """True once sampling has begun."""

    def allocate(self, counts: Tensor, *, reason: str) -> None:
        """Set how many responses each prompt gets.

        Args:
            counts: shape [prompts], integers >= 0, at least one of them above 0.
            reason: the rule's name, kept in `history`.

        Raises:
            UserError: the plan is sealed, or `counts` has another shape, a fraction, a negative entry, or no response.
        """
        self._require_open("allocate", reason)
        self.counts = _checked_counts(counts, like=self.counts, reason=reason)
        self.history.append(reason)

    def replace_prompts(self, batch: Batch, *, counts: Tensor, reason: str) -> None:
        """Sample for other prompts.

        Args:
            batch: with the same keys as before, one entry per prompt.
            counts: shape [prompts] of the new prompts; see `allocate`.
            reason: the rule's name, kept in `history`.

        Raises:
            UserError: the plan is sealed, a key is missing, or a column has another length than `counts`.
        """
        self._require_open("replace_prompts", reason)
        missing = sorted(set(self.batch) - set(batch))
        if missing:
            raise UserError(f"plan.replace_prompts: '{reason}' left out {missing[0]}; expected the keys of the batch")
        # Columns of other lengths would pair prompts with the examples of other prompts.
        for name in self.batch:
            if len(batch[name]) != len(counts):
                found = f"{len(batch[name])} entries of {name} for {len(counts)} counts"
                raise UserError(f"plan.replace_prompts: '{reason}' gave {found}; expected one count per prompt")
        # Before the batch: counts that are refused leave the plan as it was.
        self.counts = _checked_counts(counts, like=counts, reason=reason).to(self.counts.device)
        self.batch = batch
        self.history.append(reason)

    def _require_open(self, method: str, reason: str) -> None:
        if self.sealed:
            raise UserError(f"plan.{method}: '{reason}' came after sampling had begun; call it in on_rollout_start")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChange:
    """One change of an update's plan: who made it, and what it did."""

    reason: str
    """The rule's name, as logs and reports show it."""
    kind: Literal["drop", "scale", "note"]
    """What was called; a note leaves the weights alone."""
    factors: Tensor
    """[rows] float32, what the weights were multiplied by."""
    scores: Tensor | None = None
    """[rows] the scores behind it, if there are any."""


@dataclass(slots=True, kw_only=True)
class UpdatePlan:
    """What the update is about to do with each row: the one record that a callback may change.

    `drop` and `scale` multiply, so that the changes of several callbacks stack. The engine seals the plan, decides
    together with all ranks what happens if nothing is left, and updates.
    """

    episodes: Episodes
    """What was collected; only `replace_advantages` puts another record in its place."""
    history: list[PlanChange] = field(default_factory=list)
    """Every change, oldest first."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers that callbacks add to the log of this iteration; they change nothing."""
    trains_policy: bool = True
    """False in the critic's warm-up, when no policy loss counts, whatever its weight."""
    sealed: bool = False
    """True once the update has begun."""
    layers: LayerRows | None = field(default=None, init=False)
    """Which rows each layer learns from in the optimizer step; None for all rows that are kept."""
    # Private, so that each change goes through `drop` or `scale`, which check and remember it.
    _weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._weights = torch.ones(len(self.episodes), device=self.episodes.device)

    @property
    def weights(self) -> Tensor:
        """[rows] float32, >= 0; zero drops the row's policy loss, one leaves it as it is."""
        return self._weights

    @property
    def keep(self) -> Tensor:
        """[rows] bool, True where the policy loss counts."""
        return self._weights > 0

    def drop(self, mask: Tensor, *, reason: str, scores: Tensor | None = None) -> None:
        """Leave rows out of the update.

        Args:
            mask: shape [rows], bool, True where the row is dropped.
            reason: the rule's name, kept in `history`.
            scores: shape [rows], what the decision was made from, kept in `history`.

        Raises:
            UserError: the plan is sealed, or `mask` has another shape or dtype.
        """
        # For integers, `~` flips bits: ones and zeros would become large or negative weights.
        if mask.dtype != torch.bool:
            raise UserError(f"plan.drop: mask of '{reason}' has dtype {mask.dtype}; expected bool, True to drop")
        self._multiply("drop", (~mask).to(self._weights.dtype), reason=reason, scores=scores)

    def scale(self, weights: Tensor, *, reason: str, scores: Tensor | None = None) -> None:
        """Multiply the weight of each row's policy loss.

        Args:
            weights: shape [rows], float, finite, >= 0; zero drops the row.
            reason: the rule's name, kept in `history`.
            scores: shape [rows], what the weights were made from, kept in `history`.

        Raises:
            UserError: the plan is sealed, or `weights` has another shape, a NaN, an infinity or a negative entry.
        """
        self._multiply("scale", weights, reason=reason, scores=scores)

    def note(self, *, reason: str, scores: Tensor) -> None:
        """Keep scores in `history` for logs and reports; the weights stay as they are.

        Args:
            reason: the rule's name.
            scores: shape [rows].

        Raises:
            UserError: the plan is sealed.
        """
        self._multiply("note", torch.ones_like(self._weights), reason=reason, scores=scores)

    def replace_advantages(self, advantages: Tensor, *, reason: str) -> None:
        """Give the rows other advantages, for example those against another baseline; the weights stay as they are.

        Args:
            advantages: shape [rows, steps], finite.
            reason: the rule's name, kept in `history`.

        Raises:
            UserError: the plan is sealed, or `advantages` has another shape, a NaN or an infinity.
        """
        shape, expected = tuple(advantages.shape), tuple(self.episodes.advantages.shape)
        if shape != expected:
            raise UserError(f"plan.replace_advantages: '{reason}' has shape {shape}, expected {expected}")
        if not bool(torch.isfinite(advantages).all()):
            raise UserError(f"plan.replace_advantages: '{reason}' contains NaN or infinity; expected finite advantages")
        self._multiply("note", torch.ones_like(self._weights), reason=reason, scores=None)
        self.episodes = self.episodes.evolve(advantages=advantages.detach().to(self.episodes.advantages, copy=True))

    def choose_by_layer(self, layers: LayerRows, *, reason: str) -> None:
        """Let each layer learn from rows of its own, in the one optimizer step of this plan; the weights stay.

        Args:
            layers: of the rows of this plan.
            reason: the rule's name, kept in `history`.

        Raises:
            UserError: the plan is sealed, has a choice already, or `layers` is about another number of rows.
        """
        shape, expected = tuple(layers.keep.shape), len(self._weights)
        if self.layers is not None:
            raise UserError(f"plan.choose_by_layer: '{reason}' is the second choice of one step; expected one")
        if layers.keep.dtype != torch.bool or layers.keep.ndim != 2 or shape[1] != expected:
            found = f"{layers.keep.dtype} of shape {shape}"
            raise UserError(f"plan.choose_by_layer: '{reason}' has {found}; expected bool of [layers, {expected}]")
        self._multiply("note", torch.ones_like(self._weights), reason=reason, scores=None)
        self.layers = layers

    def record(self, **metrics: float) -> None:
        """Add numbers to this iteration's log; a double underscore in a name becomes the slash of its group."""
        self.metrics.update(_named(metrics))

    def _multiply(
        self, kind: Literal["drop", "scale", "note"], factors: Tensor, *, reason: str, scores: Tensor | None
    ) -> None:
        # The update has read the weights: a later change would do nothing, or the ranks would disagree on their steps.
        if self.sealed:
            raise UserError(f"plan.{kind}: '{reason}' came after the update had begun; call it in on_rollout_end")
        if factors.shape != self._weights.shape:
            shape, expected = tuple(factors.shape), tuple(self._weights.shape)
            raise UserError(f"plan.{kind}: '{reason}' has shape {shape}, expected {expected}")
        # Detached and copied: a plan keeps no graph alive, and does not change when a callback changes its own tensor.
        factors = factors.detach().to(device=self._weights.device, dtype=self._weights.dtype, copy=True)
        # NaN > 0 is False: a NaN weight would silently look like a dropped row.
        if not bool(torch.isfinite(factors).all()):
            raise UserError(f"plan.{kind}: '{reason}' contains NaN or infinity; weights must be finite")
        # A negative weight turns the loss around, and the clipping then no longer bounds the step.
        if bool((factors < 0).any()):
            raise UserError(f"plan.{kind}: '{reason}' goes down to {float(factors.min()):g}; expected weights >= 0")
        # A new tensor: weights that a callback has read before stay as they were.
        self._weights = self._weights * factors
        self.history.append(PlanChange(reason=reason, kind=kind, factors=factors, scores=scores))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStats:
    """What one iteration did, after its last optimizer step. What steers the run is a field, not a key of the log."""

    iteration: int
    """Counted from 0."""
    episodes: Episodes
    """The episodes of this iteration, of this rank."""
    sampled: Episodes
    """The same, with what was sampled and is not trained on: by dynamic sampling, or as a pilot."""
    plan: UpdatePlan
    """The sealed plan."""
    num_episodes: int
    """Rows that were sampled on all ranks."""
    kl: float
    """Mean divergence from the reference per episode, in nats, over all ranks."""
    kept_fraction: float
    """Fraction of the rows of all ranks whose policy loss counted, in [0, 1]."""
    optimizer_steps: int
    """Optimizer steps of this iteration."""
    tokens_trained: int
    """Steps that took part in an optimizer step on all ranks, each epoch counted."""
    metrics: dict[str, float]
    """Everything that goes into the log, `group/name`."""
    random: Any = None
    """`RandomStates` of this rank, before the first minibatch was drawn."""

    def record(self, **metrics: float) -> None:
        """Add numbers to this iteration's log in `on_update_end`; names as in `UpdatePlan.record`."""
        self.metrics.update(_named(metrics))


class Minibatch:
    """The rows of one backward pass, with what divides their losses.

    A plain class on purpose: Lightning walks through dataclasses that pass a wrapped module and refuses frozen ones.
    """

    __slots__ = ("episodes", "policy_denominator", "value_denominator", "value_weights", "weights")

    def __init__(
        self,
        *,
        episodes: Episodes,
        weights: Tensor,
        value_weights: Tensor,
        policy_denominator: float,
        value_denominator: float,
    ) -> None:
        self.episodes = episodes
        """The rows of this backward pass."""
        self.weights = weights
        """[rows] weight of each row's policy loss."""
        self.value_weights = value_weights
        """[rows] weight of its value and entropy losses: one, or zero for a row that only fills a rank."""
        self.policy_denominator = policy_denominator
        """Rows (or steps) that the policy loss of the whole optimizer step is divided by, over all ranks."""
        self.value_denominator = value_denominator
        """The same for the value loss and the entropy."""


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    # A keyword cannot contain a slash.
    return {name.replace("__", "/"): float(value) for name, value in metrics.items()}


def _checked_counts(counts: Tensor, *, like: Tensor, reason: str) -> Tensor:
    # Booleans are no floating-point numbers either: a mask passed by mistake would mean one response or none.
    if counts.shape != like.shape or counts.is_floating_point() or counts.dtype == torch.bool:
        found = f"{tuple(counts.shape)} of {counts.dtype}"
        raise UserError(f"plan.allocate: counts of '{reason}' are {found}; expected {tuple(like.shape)} integers")
    if bool((counts < 0).any()) or int(counts.sum()) < 1:
        raise UserError(
            f"plan.allocate: counts of '{reason}' are {counts.tolist()}; expected >= 0, one of them above 0"
        )
    # Copied: the plan does not change when the callback changes its own tensor.
    return counts.detach().to(device=like.device, dtype=torch.long, copy=True)
