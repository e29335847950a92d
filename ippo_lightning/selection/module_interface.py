"""What the influence filter needs of a project, and where it finds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.influence.directions import require_adam

EpisodeLosses = Callable[[Any, Any], Tensor]
ValidationLoss = Callable[[Any, Any], Tensor]
Buffer = Callable[[Any, Any], Any]


TO_PASS = (
    "pass the functions episode_losses and validation_loss, and buffer, or call influence.apply(module, buffer) "
    "between rollout and update"
)
"""What a project must give the filter."""


class ModuleInterface:
    """The project's own functions: those that were passed, else methods of the module.

    Args:
        episode_losses: `(module, episodes) -> [rows]`; None for the module's method of that name.
        buffer: `(module, batch) -> buffer`, what a training batch is about to learn from; None for the module's
            attribute of that name, if it has one.
    """

    def __init__(self, *, episode_losses: EpisodeLosses | None = None, buffer: Buffer | None = None) -> None:
        self._episode_losses = episode_losses
        self._buffer = buffer

    def require_any_losses(self, pl_module: Any) -> None:
        """Check before training that there can be losses to score: of the module, or of a part filtered by hand.

        Raises:
            UserError: there are none.
        """
        require_any("episode_losses", self._episode_losses, pl_module)

    def require_losses(self, pl_module: Any) -> None:
        """Check that there are losses to score.

        Raises:
            UserError: there are none.
        """
        if self._episode_losses is None and not callable(getattr(pl_module, "episode_losses", None)):
            raise UserError(
                f"InfluenceFilter.episode_losses: null, and {type(pl_module).__name__} has no method episode_losses; "
                "scores need episode_losses(episodes) -> [rows] and validation_loss(batch) -> []"
            )

    def episode_losses(self, pl_module: Any, episodes: Any, *, for_difference: bool = False) -> Tensor:
        """Return one loss per row at the current parameters, shape [rows].

        Args:
            pl_module: may have the method `difference_losses(episodes) -> [rows]`, which is smooth nearby.
            episodes: the rows.
            for_difference: whether differences of the losses are taken.
        """
        if self._episode_losses is not None:
            return self._episode_losses(pl_module, episodes)
        smooth = getattr(pl_module, "difference_losses", None) if for_difference else None
        losses: Tensor = smooth(episodes) if callable(smooth) else pl_module.episode_losses(episodes)
        return losses

    def rollout_losses(self, pl_module: Any, episodes: Any) -> Callable[[Any], Tensor] | None:
        """Return a function that gives the losses at the parameters that sampled without a forward, None if unknown.

        Args:
            pl_module: may have the method `rollout_losses(episodes) -> [rows] | None`.
            episodes: a few rows, to ask whether there is an answer.
        """
        # the module's stored losses belong to its own episode_losses, not to a function that replaces it
        if self._episode_losses is not None or not callable(getattr(pl_module, "rollout_losses", None)):
            return None
        known: Callable[[Any], Tensor] = pl_module.rollout_losses
        return None if known(episodes) is None else known

    def has_buffer(self, pl_module: Any) -> bool:
        """Return whether training batches are filtered: for projects that do not call `on_rollout_end` themselves."""
        return self._buffer is not None or isinstance(getattr(pl_module, "buffer", None), (dict, list))

    def buffer(self, pl_module: Any, batch: Any) -> Any:
        """Return what this training batch is about to learn from, None if there is nothing."""
        return self._buffer(pl_module, batch) if self._buffer is not None else getattr(pl_module, "buffer", None)


def require_any(name: str, given: Callable[..., Any] | None, pl_module: Any) -> None:
    """Check that a function was passed, or that a module or one of its parts has it: `apply` may be called for a part.

    Args:
        name: of the argument of the filter, and of the method.
        given: what was passed.
        pl_module: about to be trained.

    Raises:
        UserError: there is neither.
    """
    parts = pl_module.modules() if isinstance(pl_module, torch.nn.Module) else [pl_module]
    if given is None and not any(callable(getattr(part, name, None)) for part in parts):
        raise UserError(f"InfluenceFilter.{name}: null, and {type(pl_module).__name__} has no method {name}; {TO_PASS}")


def trainer_of(pl_module: Any) -> Any:
    """Return the trainer that runs a module, None if there is none.

    Args:
        pl_module: a `LightningModule`, whose property `trainer` raises without one, or any other module.
    """
    # not the property: it raises without a trainer, and returns a stand-in under Fabric
    return getattr(pl_module, "_trainer", None)


def accumulated_step(trainer: Any, pl_module: Any) -> int | None:
    """Return the number of the optimizer step that a micro-batch belongs to; None without gradient accumulation.

    Args:
        trainer: a `lightning.Trainer`, or anything else.
        pl_module: under automatic optimisation, which alone accumulates by `accumulate_grad_batches`.
    """
    if not getattr(pl_module, "automatic_optimization", False):
        return None
    # without accumulation there is nothing to put together, and a gradient scaler may skip steps
    return int(trainer.global_step) if getattr(trainer, "accumulate_grad_batches", 1) > 1 else None


def adam_of(pl_module: Any) -> torch.optim.Optimizer:
    """Return the module's one optimizer, for scores that know of Adam.

    Raises:
        UserError: it has several, or none; or the one keeps no second moments.
    """
    # Lightning returns a list unless there is exactly one
    found = pl_module.optimizers() if hasattr(pl_module, "optimizers") else []
    if isinstance(found, list):
        raise UserError(
            f"InfluenceFilter.scoring.adam_aware: {type(pl_module).__name__} has {len(found)} optimizers; expected one"
        )
    try:
        return require_adam(found)
    except UserError as error:
        raise UserError(
            f"InfluenceFilter.scoring.adam_aware: true needs Adam's second moments, and {error}; set adam_aware: false "
            "for scores of a plain gradient step, or optimizer.kind: adamw"
        ) from error
