"""All that differs between `lightning.Trainer` and Fabric: one adapter for each, and nothing of it anywhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor

from ippo_lightning.distributed.dtensor import full_tensor, is_sharded
from ippo_lightning.policies.sharding import unknown_sharding

if TYPE_CHECKING:
    from lightning import LightningModule


class Backend(Protocol):
    """Who runs a module, as the module needs it."""

    @property
    def host(self) -> Any:
        """What callbacks get as their trainer."""

    @property
    def callbacks(self) -> Sequence[Any]:
        """The run's callbacks."""

    @property
    def total_iterations(self) -> int | None:
        """Iterations of the whole run; None where nobody knows."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Leave gradients unaveraged over ranks."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the module through whatever the strategy wrapped round it (DDP)."""

    def clip_gradients(self, optimizer: Any, *, max_norm: float) -> Tensor | None:
        """Scale the gradient down to `max_norm`; return its norm before, where the strategy tells."""

    @property
    def scaler(self) -> Any:
        """The gradient scaler of float16, which skips a step that overflows and then scales less; or None."""

    def log(self, metrics: Mapping[str, float], *, iteration: int) -> None:
        """Hand the numbers of an iteration to the loggers."""


class FabricBackend:
    """A loop over Fabric.

    Args:
        module: attached to the loop.
        loop: has `callbacks` and `max_iterations`, as a `FabricLoop` does; logs what `training_step` returns.
        wrapper: what `Fabric.setup` returned; None where nothing is trained.
    """

    def __init__(self, module: LightningModule, loop: Any, wrapper: Any) -> None:
        self.module, self.host, self.wrapper = module, loop, wrapper

    @property
    def callbacks(self) -> Sequence[Any]:
        """Those of the loop."""
        return list(self.host.callbacks)

    @property
    def total_iterations(self) -> int | None:
        """As the loop was told."""
        return int(self.host.max_iterations)

    def no_sync(self) -> AbstractContextManager[None]:
        """Fabric's own; none for divided parameters, whose gradients would be held whole in the meantime."""
        if self.wrapper is None or self.module.fabric is None or is_sharded(self.module):
            return nullcontext()
        return self.module.fabric.no_backward_sync(self.wrapper)

    def call(self, method: str, *arguments: Any) -> Any:
        """Through the wrapper."""
        return getattr(self.wrapper or self.module, method)(*arguments)

    def clip_gradients(self, optimizer: Any, *, max_norm: float) -> Tensor | None:
        """Fabric's own, which knows sharded and scaled gradients."""
        if self.wrapper is None or self.module.fabric is None:
            return _clipped(self.module, max_norm)
        norm = self.module.fabric.clip_gradients(self.wrapper, optimizer, max_norm=max_norm, error_if_nonfinite=False)
        return None if norm is None else full_tensor(norm)

    @property
    def scaler(self) -> Any:
        """Of Fabric's precision plugin."""
        return None if self.module.fabric is None else getattr(self.module.fabric.strategy.precision, "scaler", None)

    def log(self, metrics: Mapping[str, float], *, iteration: int) -> None:
        """Nothing to do: the loop logs."""


class TrainerBackend:
    """`lightning.Trainer`.

    Args:
        module: run by its `trainer`.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module

    def require_supported_strategy(self) -> None:
        """Refuse strategies that sampling and scoring cannot work with; see `require_whole_or_fsdp2`."""
        require_whole_or_fsdp2(self.host.strategy)

    @property
    def host(self) -> Any:
        """The trainer."""
        return self.module.trainer

    @property
    def callbacks(self) -> Sequence[Any]:
        """Those of the trainer."""
        return list(self.host.callbacks)

    @property
    def total_iterations(self) -> int | None:
        """Batches of all epochs; unknown where `max_steps` ends the run, which counts optimizer steps."""
        trainer = self.host
        if trainer.max_steps != -1 or trainer.max_epochs in (None, -1):
            return None
        total = trainer.num_training_batches * trainer.max_epochs
        return int(total) if 0 < total < math.inf else None

    def no_sync(self) -> AbstractContextManager[None]:
        """The strategy's own, where it has one."""
        block = None if is_sharded(self.module) else getattr(self.host.strategy, "block_backward_sync", None)
        return block() if block is not None else nullcontext()

    def call(self, method: str, *arguments: Any) -> Any:
        """Directly: Trainer's strategies route the whole `training_step` through their wrapper."""
        return getattr(self.module, method)(*arguments)

    def clip_gradients(self, optimizer: Any, *, max_norm: float) -> Tensor | None:
        """Over the trainable parameters; scaled gradients by a scaled norm, since the plugin unscales in its step."""
        scale = 1.0 if self.scaler is None else float(self.scaler.get_scale())
        return _clipped(self.module, max_norm * scale) / scale

    @property
    def scaler(self) -> Any:
        """Of Trainer's precision plugin."""
        return getattr(self.host.precision_plugin, "scaler", None)

    def log(self, metrics: Mapping[str, float], *, iteration: int) -> None:
        """Log with our own count as the step: Trainer's counts every optimizer step."""
        self.module.log("step", float(iteration), on_step=True, on_epoch=False, batch_size=1)
        for name, value in metrics.items():
            self.module.log(
                name, float(value), on_step=True, on_epoch=False, batch_size=1, prog_bar=name in _IN_PROGRESS_BAR
            )


def require_whole_or_fsdp2(strategy: object) -> None:
    """Refuse what divides parameters otherwise than Trainer's `ModelParallelStrategy`.

    Args:
        strategy: of a Trainer.

    Raises:
        UserError: it is FSDP1 or DeepSpeed.
    """
    if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
        raise unknown_sharding("Trainer.strategy", strategy, instead="ModelParallelStrategy (FSDP2)")


_IN_PROGRESS_BAR = frozenset({"rollout/reward_mean", "update/kept_fraction", "sft/loss"})


def _clipped(module: LightningModule, max_norm: float) -> Tensor:
    return full_tensor(torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], max_norm))
