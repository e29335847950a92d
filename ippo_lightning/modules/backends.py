"""What differs between `lightning.Trainer` and Fabric: one adapter for each, and nothing of it anywhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.fabric.plugins import Precision
from lightning.fabric.strategies import SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from ippo_lightning.distributed.dtensor import full_tensor, is_sharded
from ippo_lightning.policies.sharding import unknown_sharding

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer
    from lightning.fabric.wrappers import _FabricModule


class Loop(Protocol):
    """What a module reads of a loop other than `lightning.Trainer`; a `FabricLoop` has it."""

    should_stop: bool
    """Set by callbacks, to end the run after the iteration."""

    @property
    def callbacks(self) -> Sequence[object]:
        """The run's callbacks."""

    @property
    def max_iterations(self) -> int:
        """Iterations of the run."""


class Backend(Protocol):
    """What a module needs of the loop that runs it."""

    @property
    def host(self) -> object:
        """What callbacks get as their trainer."""

    @property
    def callbacks(self) -> Sequence[object]:
        """The run's callbacks."""

    @property
    def total_iterations(self) -> int | None:
        """Iterations of the run; None if unknown."""

    def call_hook(self, name: str, *arguments: object) -> None:
        """Call one of Lightning's hooks inside an optimizer step, unless the loop calls it itself.

        Args:
            name: `on_before_backward`, for example.
            arguments: after the trainer and the module.
        """

    def no_sync(self) -> AbstractContextManager[None]:
        """Do not average gradients over ranks."""

    def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the module through the strategy's wrapper (DDP)."""

    def clip_gradients(self, optimizer: Optimizer, *, max_norm: float) -> Tensor | None:
        """Scale the gradient down to `max_norm`; return its norm before, or None if the strategy does not tell.

        Args:
            optimizer: of the gradients' parameters.
            max_norm: of all gradients together, over all ranks; infinity only measures the norm.

        Returns:
            Shape [], that of unscaled gradients.
        """

    @property
    def scaler(self) -> GradScaler | None:
        """The gradient scaler of float16, which skips a step that overflows and then scales less; None without one."""

    def log(self, metrics: Mapping[str, float], *, iteration: int) -> None:
        """Log the numbers of an iteration.

        Args:
            metrics: by name, `group/name`.
            iteration: counted from 0.
        """


class FabricBackend:
    """A loop over Fabric as a backend.

    Args:
        module: attached to the loop.
        loop: logs what `training_step` returns.
        wrapper: what `Fabric.setup` returned; None without training.
    """

    def __init__(self, module: LightningModule, loop: Loop, wrapper: _FabricModule | None) -> None:
        self.module, self.host, self.wrapper = module, loop, wrapper
        self._is_plain = wrapper is not None and module.fabric is not None and _is_plain(module.fabric.strategy)

    @property
    def callbacks(self) -> Sequence[object]:
        """The loop's callbacks."""
        return list(self.host.callbacks)

    @property
    def total_iterations(self) -> int | None:
        """The loop's setting."""
        return int(self.host.max_iterations)

    def call_hook(self, name: str, *arguments: object) -> None:
        """Call the hook of the loop's callbacks, if the loop has any."""
        call = getattr(self.host, "call_hook", None)
        if call is not None:
            call(name, *arguments)

    def no_sync(self) -> AbstractContextManager[None]:
        """Use Fabric's; for sharded parameters do nothing, because full gradients would stay in memory meanwhile."""
        # Without training there is no wrapper, and no gradient is sent.
        if self.wrapper is None or self.module.fabric is None or is_sharded(self.module):
            return nullcontext()
        return self.module.fabric.no_backward_sync(self.wrapper)

    def call(self, method: str, *arguments: object) -> Any:
        """Call it through the wrapper; without training there is none."""
        # The loop has marked the loss method as a forward, so that DDP takes part in it.
        return getattr(self.module if self._is_plain else self.wrapper or self.module, method)(*arguments)

    def clip_gradients(self, optimizer: Optimizer, *, max_norm: float) -> Tensor | None:
        """Clip by Fabric, which supports sharded and scaled gradients."""
        if self.wrapper is None or self.module.fabric is None:
            return _clipped(self.module, max_norm)
        if self._is_plain:  # in the order of Fabric, on which the rounding of the norm depends
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        # No error here: the caller knows the rows of the minibatch, and names those that broke the gradient.
        norm = self.module.fabric.clip_gradients(self.wrapper, optimizer, max_norm=max_norm, error_if_nonfinite=False)
        return None if norm is None else full_tensor(norm)

    @property
    def scaler(self) -> GradScaler | None:
        """The scaler of Fabric's precision plugin."""
        return None if self.module.fabric is None else getattr(self.module.fabric.strategy.precision, "scaler", None)

    def log(self, metrics: Mapping[str, float], *, iteration: int) -> None:
        """Do nothing: the loop logs."""


class TrainerBackend:
    """`lightning.Trainer` as a backend.

    Args:
        module: run by its `trainer`.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module

    def require_supported_strategy(self) -> None:
        """Refuse strategies that do not work with sampling and scoring; see `require_full_or_fsdp2`."""
        require_full_or_fsdp2(self.host.strategy)

    @property
    def host(self) -> Trainer:
        """The trainer."""
        return self.module.trainer

    @property
    def callbacks(self) -> Sequence[object]:
        """The trainer's callbacks."""
        return list(self.host.callbacks)  # type: ignore[attr-defined]  # set by a part of the Trainer

    @property
    def total_iterations(self) -> int | None:
        """Batches of all epochs; None if `max_steps` ends the run, because it counts optimizer steps."""
        # The learning rate follows the number of iterations, so an unknown one is better than a wrong one.
        trainer = self.host
        if trainer.max_steps != -1 or trainer.max_epochs in (None, -1):
            return None
        total = trainer.num_training_batches * trainer.max_epochs
        # Infinite for a loader without a length.
        return int(total) if 0 < total < math.inf else None

    def call_hook(self, name: str, *arguments: object) -> None:
        """Do nothing: Trainer's precision plugin calls them."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Use the strategy's context, if it has one; do nothing for sharded parameters, as above."""
        # A strategy of one process has no such context, and sends no gradients.
        block = None if is_sharded(self.module) else getattr(self.host.strategy, "block_backward_sync", None)
        return block() if block is not None else nullcontext()

    def call(self, method: str, *arguments: object) -> Any:
        """Call it directly: Trainer's strategies route the whole `training_step` through their wrapper."""
        return getattr(self.module, method)(*arguments)

    def clip_gradients(self, optimizer: Optimizer, *, max_norm: float) -> Tensor | None:
        """Clip trained parameters; scaled gradients by a scaled norm, since the plugin unscales in its step."""
        scale = 1.0 if self.scaler is None else float(self.scaler.get_scale())
        return _clipped(self.module, max_norm * scale) / scale

    @property
    def scaler(self) -> GradScaler | None:
        """The scaler of Trainer's precision plugin."""
        return getattr(self.host.precision_plugin, "scaler", None)

    def log(self, metrics: Mapping[str, float], *, iteration: int) -> None:
        """Log with the iteration as the step: Trainer's own step counts every optimizer step."""
        # Lightning's loggers take a metric of this name for the horizontal axis.
        self.module.log("step", float(iteration), on_step=True, on_epoch=False, batch_size=1)
        for name, value in metrics.items():
            self.module.log(
                name, float(value), on_step=True, on_epoch=False, batch_size=1, prog_bar=name in _IN_PROGRESS_BAR
            )


def require_full_or_fsdp2(strategy: object) -> None:
    """Refuse strategies that shard parameters otherwise than Trainer's `ModelParallelStrategy`.

    Args:
        strategy: the Trainer's.

    Raises:
        UserError: it is FSDP1 or DeepSpeed.
    """
    if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
        raise unknown_sharding("Trainer.strategy", strategy, instead="ModelParallelStrategy (FSDP2)")


_IN_PROGRESS_BAR = frozenset({"rollout/reward_mean", "update/kept_fraction", "sft/loss"})


def _is_plain(strategy: Strategy) -> bool:
    """Return whether Fabric passes all calls on to torch: one process, and the precision of the weights.

    Its wrappers take a few hundredths of a small step. Exact types, because a subclass may do more.
    """
    return type(strategy) is SingleDeviceStrategy and type(strategy.precision) is Precision


def _clipped(module: LightningModule, max_norm: float) -> Tensor:
    # The norm of sharded gradients is a sharded tensor itself.
    return full_tensor(torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], max_norm))
