"""What the influence filter needs of a project, and where it finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ippo_lightning.errors import UserError

EpisodeLosses = Callable[[Any, Any], Tensor]
ValidationLoss = Callable[[Any, Any], Tensor]
Buffer = Callable[[Any, Any], Any]


class Attachment:
    """The project's own functions: those handed in, else methods of the module.

    Args:
        episode_losses: `(module, episodes) -> [rows]`; null for the module's method of that name.
        validation_loss: `(module, batch) -> []`; null for the module's method of that name.
        buffer: `(module, batch) -> buffer`, what a training batch is about to learn from; null for the module's
            attribute of that name, if it has one.
        demonstrations: batches for `validation_loss`; null for the data module's `influence_dataloader()`.
    """

    def __init__(
        self,
        *,
        episode_losses: EpisodeLosses | None,
        validation_loss: ValidationLoss | None,
        buffer: Buffer | None,
        demonstrations: Sequence[Any] | None,
    ) -> None:
        self._given = {"episode_losses": episode_losses, "validation_loss": validation_loss}
        self._buffer = buffer
        self._demonstrations = demonstrations

    def require(self, pl_module: Any) -> None:
        """Check that both losses can be had.

        Raises:
            UserError: one is missing, and is named.
        """
        for name, given in self._given.items():
            if given is None and not callable(getattr(pl_module, name, None)):
                raise UserError(
                    f"InfluenceFilter.{name}: null, and {type(pl_module).__name__} has no method {name}; it needs "
                    "episode_losses(episodes) -> [rows] and validation_loss(batch) -> []"
                )

    def episode_losses(self, pl_module: Any, episodes: Any) -> Tensor:
        """Return one loss an episode at the present parameters, shape [rows]."""
        given = self._given["episode_losses"]
        return given(pl_module, episodes) if given is not None else pl_module.episode_losses(episodes)

    def validation_loss(self, pl_module: Any, batch: Any) -> Tensor:
        """Return the loss on good demonstrations, shape []."""
        given = self._given["validation_loss"]
        return given(pl_module, batch) if given is not None else pl_module.validation_loss(batch)

    def has_buffer(self, pl_module: Any) -> bool:
        """Whether training batches are filtered: in projects that do not call `on_rollout_end` themselves."""
        return self._buffer is not None or isinstance(getattr(pl_module, "buffer", None), (dict, list))

    def buffer(self, pl_module: Any, batch: Any) -> Any:
        """Return what this training batch is about to learn from."""
        return self._buffer(pl_module, batch) if self._buffer is not None else pl_module.buffer

    def demonstrations(self, trainer: Any) -> list[Any]:
        """Return the batches of good demonstrations.

        Raises:
            UserError: none were handed in and the data module offers none.
        """
        if self._demonstrations is not None:
            return list(self._demonstrations)
        datamodule = getattr(trainer, "datamodule", None)
        loader = getattr(datamodule, "influence_dataloader", None)
        if loader is None:
            raise UserError(
                f"InfluenceFilter.demonstrations: null, and {type(datamodule).__name__} has no influence_dataloader(); "
                "hand in batches for validation_loss, or give the data module that method"
            )
        batches: Iterable[Any] = loader()
        return list(batches)
