"""Targets: what the gradients of the rows are compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.records import ControlEpisodes, UpdatePlan
from ippo_lightning.records.pass_size import MaxTokens, require_max_tokens
from ippo_lightning.selection.module_interface import ValidationLoss, require_any


class OwnTerms(NamedTuple):
    """What the rows of a rollout add to a target that is made from them, so that a row's own part can be left out.

    The target's loss is the sum of the losses of all ranks' rows, divided by the sum of their weights.
    """

    weights: Tensor
    """[rows] float64, of this rank's rows; 0 for a row that is not in the target."""
    losses: Callable[[Any, Any], Tensor] | None = None
    """Called with the module and rows; returns the part of each, shape [rows], with its graph. None if these are the
    losses that are scored."""


class TargetLoss(NamedTuple):
    """A loss, and the batches over which its gradient is averaged."""

    loss: Callable[[Any, Any], Tensor]
    """Called with the module and a batch; returns the loss, shape [], with its graph."""
    batches: Sequence[Any]
    """At least one."""
    weight: Callable[[Any], float] | None = None
    """The weight of a batch in the average; None for its number of rows, or 1 if that is unknown."""
    is_of_rank: bool = False
    """Whether each rank has batches of its own, or all ranks have the same ones and share the work."""
    costs: Callable[[Any, Any], Tensor] | None = None
    """Called with the module and a batch; returns the tokens of each row, shape [rows], int64. None if unknown: then
    only the batches themselves bound a pass."""
    max_tokens: MaxTokens = "auto"
    """Tokens of a pass, padding included."""
    own: OwnTerms | None = None
    """What each row adds, if a row is scored against the target of the other rows; None if nothing is left out."""
    num_sampled: int | None = None
    """Responses that this rank has sampled for the target alone; None for a target that samples none, on all ranks."""


class Target(ABC):
    """What a score is about: a positive one means that a small step on the row lowers the target's loss."""

    @property
    def leaves_out_self(self) -> bool:
        """Whether a row is scored against the target of the other rows: then `loss` returns `own`, too."""
        return False

    def require(self, module: Any) -> None:  # noqa: B027 - most targets need nothing before training
        """Check before training what the target needs of a module; by default it needs nothing.

        Args:
            module: about to be trained.

        Raises:
            UserError: the module lacks something.
        """

    @abstractmethod
    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Return the loss and its batches.

        Args:
            module: under training.
            plan: of the update, with the episodes.
            trainer: a `lightning.Trainer` or `FabricLoop`, with the data module; None outside of both.
        """


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Target):
    """The loss on good demonstrations. Source: Shu, Zhang and Hullman 2026, arXiv 2604.01597.

    Args:
        batches: for the loss, the same on each rank; None for those of the data module's `influence_dataloader()`.
        validation_loss: `(module, batch) -> []`; None for the module's method of that name.
        max_tokens: tokens of a pass, padding included, >= 1; `auto` is 16384 on a CPU, and what the memory of a GPU
            allows. A batch of more is cut, if the module's own loss is taken and the module has the method
            `demonstration_costs(batch) -> [rows]`. A pass that does not fit in the device's memory is halved.

    Raises:
        UserError: a number out of its range, or one batch in place of a list of batches.
    """

    batches: Sequence[Any] | None = None
    validation_loss: ValidationLoss | None = None
    max_tokens: MaxTokens = "auto"

    def __post_init__(self) -> None:
        require_max_tokens("target.max_tokens", self.max_tokens)
        _require_list_of_batches(self.batches)

    def require(self, module: Any) -> None:
        """Check before training that there can be a validation loss: of the module, or of a part filtered by hand.

        Raises:
            UserError: there is none.
        """
        require_any("validation_loss", self.validation_loss, module)

    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Return the validation loss and the demonstrations.

        Raises:
            UserError: the module has no validation loss, or there are no demonstrations.
        """
        if self.validation_loss is None and not callable(getattr(module, "validation_loss", None)):
            raise UserError(
                f"InfluenceFilter.validation_loss: null, and {type(module).__name__} has no method validation_loss; "
                "scores need episode_losses(episodes) -> [rows] and validation_loss(batch) -> []"
            )
        # A loss of the user's own may read a batch in any way, so its tokens are unknown.
        counts = self.validation_loss is None and callable(getattr(module, "demonstration_costs", None))
        return TargetLoss(
            self.validation_loss or _validation_loss,
            self._found(trainer),
            costs=_demonstration_costs if counts else None,
            max_tokens=self.max_tokens,
        )

    def _found(self, trainer: Any) -> list[Any]:
        if self.batches is not None:
            return _not_empty(list(self.batches), field="InfluenceFilter.demonstrations")
        datamodule = getattr(trainer, "datamodule", None)
        loader = getattr(datamodule, "influence_dataloader", None)
        if loader is None:
            owner = "a run without a data module" if datamodule is None else type(datamodule).__name__
            raise UserError(
                f"InfluenceFilter.demonstrations: null, and {owner} has no influence_dataloader(); "
                "pass batches for validation_loss, or give the data module that method"
            )
        batches: Iterable[Any] = loader()
        # as a list, because groups and ranks divide the batches by their number
        return _not_empty(list(batches), field=f"{type(datamodule).__name__}.influence_dataloader()")


@dataclass(frozen=True, kw_only=True)
class ActionLogProb(Target):
    """Minus log pi(a|s) of one action in one observation: what made this behaviour more probable?

    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), f_action, with the opposite sign.

    Args:
        observation: its numbers in one list, as the policy sees them (normalised, if the environment's are); of a
            number from a list, that number alone.
        action: the number of the action, or its vector.

    Raises:
        UserError: no number; later, a module without environments, or another shape than that of its observations.
    """

    observation: Sequence[float]
    action: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("observation", "action"):
            if not len(getattr(self, name)):
                raise UserError(f"target.{name}: [] is empty; expected at least one number")

    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Return the validation loss of the module, and the one action.

        Raises:
            UserError: the rows are no transitions, or have other shapes.
        """
        episodes = plan.episodes
        if not isinstance(episodes, ControlEpisodes) or not callable(getattr(module, "validation_loss", None)):
            raise UserError(
                f"InfluenceFilter.target: ActionLogProb is for environments, not for {type(module).__name__}; "
                "use ReturnOfBuffer"
            )
        batch = {
            "observations": _like(self.observation, episodes.observations, name="observation"),
            "actions": _like(self.action, episodes.actions, name="action"),
        }
        return TargetLoss(_validation_loss, [batch])


def _like(numbers: Sequence[float], column: Tensor, *, name: str) -> Tensor:
    """Return one row of a column [rows, steps, *shape], without its axis of steps."""
    shape = column.shape[2:]
    if len(numbers) != shape.numel():
        raise UserError(f"target.{name}: got {len(numbers)} numbers; expected {shape.numel()}, shape {list(shape)}")
    return torch.tensor(numbers, dtype=torch.float64).to(column).reshape(1, *shape)


def build_target(
    target: Target | None, *, demonstrations: Sequence[Any] | None, validation_loss: ValidationLoss | None
) -> Target:
    """Return the target, by default `Demonstrations`.

    Args:
        target: an object, or None.
        demonstrations: `batches` of the default target.
        validation_loss: of the default target.

    Raises:
        UserError: an argument of the default target beside an object.
    """
    if target is None:
        return Demonstrations(batches=demonstrations, validation_loss=validation_loss)
    for name, value in {"demonstrations": demonstrations, "validation_loss": validation_loss}.items():
        if value is not None:
            kind = type(target).__name__
            raise UserError(
                f"InfluenceFilter.{name}: it is for the default target, and target is a {kind}; leave it out"
            )
    return target


def _require_list_of_batches(batches: Any) -> None:
    """Check that demonstrations are batches, and not the columns of one batch whose list was forgotten."""
    if isinstance(batches, (dict, Tensor, str)):
        found = f"a {type(batches).__name__}"
    elif isinstance(batches, (list, tuple)) and len({_kind(column) for column in batches}) > 1:
        # Batches of one loss are alike; columns of a batch, such as inputs and labels, differ.
        if not all(isinstance(column, Tensor) for column in batches):
            return
        found = f"a {type(batches).__name__} of tensors of {len({_kind(column) for column in batches})} kinds"
    else:
        return
    raise UserError(
        f"InfluenceFilter.demonstrations: {found}, which is one batch; expected a list of batches, such as "
        "demonstrations=[batch]"
    )


def _kind(column: Any) -> tuple[Any, ...]:
    return (column.dtype, column.ndim) if isinstance(column, Tensor) else (type(column),)


def _not_empty(batches: list[Any], *, field: str) -> list[Any]:
    if not batches:
        raise UserError(f"{field}: it has no batch; expected at least one batch of good demonstrations")
    return batches


def _validation_loss(module: Any, batch: Any) -> Tensor:
    loss: Tensor = module.validation_loss(batch)
    return loss


def _demonstration_costs(module: Any, batch: Any) -> Tensor:
    costs: Tensor = module.demonstration_costs(batch)
    return costs
