"""What all modules share: the backend that runs them, the optimizer, and counters that a checkpoint keeps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.engine import random_states, restore_random_states, seed_training
from ippo_lightning.modules.backends import Backend, FabricBackend, Loop, TrainerBackend
from ippo_lightning.modules.failed_steps import StepTrace, keep_skipped_step, keeping_failed_step
from ippo_lightning.modules.memory import memory_of
from ippo_lightning.modules.optimization import (
    OptimizerSettings,
    build_optimizer,
    check_trained_dtypes,
    learning_rate_factor,
)
from ippo_lightning.modules.rebuilding import CHECKPOINT_KEY, RebuildableModule
from ippo_lightning.modules.standard_parts import BASE_PARTS
from ippo_lightning.records import Minibatch, Pass, passes
from ippo_lightning.records.pass_size import PassSize

if TYPE_CHECKING:
    from lightning.fabric.wrappers import _FabricModule

    from ippo_lightning.engine.random_streams import RandomStates


class BaseModule(RebuildableModule):
    """A module under manual optimisation: one `training_step` is one iteration.

    Args:
        optimizer: AdamW and its schedule.
    """

    loss_method: ClassVar[str]
    """Name of the method whose loss goes through the strategy's wrapper."""
    standard_parts: ClassVar[Mapping[str, type]] = BASE_PARTS
    """What an argument is that is None, by name; a configuration writes it out with all of its values."""

    def __init__(self, *, optimizer: OptimizerSettings | None = None) -> None:
        super().__init__()
        # One `training_step` takes many optimizer steps, or none, which Lightning's own loop does not support.
        self.automatic_optimization = False
        self.optimizer_settings = optimizer or OptimizerSettings()
        # Own counters: Lightning's `global_step` counts optimizer steps, and an iteration takes many of them.
        self.iteration = 0
        self.episodes_seen = 0
        self.optimizer_steps = 0
        self.tokens_trained = 0
        self.pass_size = PassSize("auto", field="update.max_tokens")
        self._random_states: list[RandomStates] | None = None
        self.step_trace = StepTrace()

    # --- the backend: Fabric or Trainer -----------------------------------------------------------

    def attach(self, loop: Loop, *, wrapper: _FabricModule | None = None) -> None:
        """Tie the module to a loop other than `lightning.Trainer`.

        Args:
            loop: a `FabricLoop`, or what has the same attributes.
            wrapper: what `Fabric.setup` returned; losses are computed through it, so that DDP takes part.
        """
        # not through nn.Module.__setattr__: the wrapper contains this module and would become its child
        self.__dict__["_backend"] = FabricBackend(self, loop, wrapper)
        # Again: a precision such as bf16-true converts the weights after the optimizer is built.
        if wrapper is not None:
            check_trained_dtypes(self.trained_parameters())

    def setup(self, stage: str) -> None:
        """Leave a loop that `attach` tied the module to: from here on `lightning.Trainer` runs it.

        Raises:
            UserError: the strategy does not work with sampling and scoring.
        """
        if self._trainer is None:  # a subclass's `setup` under another loop, before that attaches the module
            return
        self.__dict__["_backend"] = None
        # Lightning's own methods (`optimizers`, `manual_backward`) would use the Fabric of an earlier loop.
        self._fabric = None
        TrainerBackend(self).require_supported_strategy()

    @property
    def backend(self) -> Backend:
        """The adapter to the `FabricLoop` or `lightning.Trainer` that runs the module."""
        attached: Backend | None = self.__dict__.get("_backend")
        return attached if attached is not None else TrainerBackend(self)

    @property
    def is_free(self) -> bool:
        """Whether no loop runs the module."""
        return not self.is_attached and self._trainer is None

    @property
    def is_attached(self) -> bool:
        """Whether a loop other than `lightning.Trainer` runs the module, and does what Trainer does by hooks."""
        return self.__dict__.get("_backend") is not None

    # Under another loop Lightning's own properties would give a stand-in without attributes, and 0.

    @property
    def trainer(self) -> Any:
        """The `lightning.Trainer`, or the other loop that runs the module."""
        return self.backend.host if self.is_attached else super().trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]

    @property
    def current_epoch(self) -> int:
        """Epochs that are done, of the loop that runs the module."""
        return int(getattr(self.backend.host, "current_epoch", 0)) if self.is_attached else super().current_epoch

    @property
    def global_step(self) -> int:
        """Steps of the loop that runs the module."""
        return int(getattr(self.backend.host, "global_step", 0)) if self.is_attached else super().global_step

    def log(self, name: str, value: Any, *arguments: Any, **settings: Any) -> None:
        """Log a number as under `lightning.Trainer`, where callbacks can monitor it."""
        super().log(name, value, *arguments, **settings)
        self._note({name: value})

    def log_dict(self, dictionary: Any, *arguments: Any, **settings: Any) -> None:
        """Log several numbers; see `log`."""
        super().log_dict(dictionary, *arguments, **settings)
        self._note(dict(dictionary.items()))

    def _note(self, numbers: Mapping[str, Any]) -> None:
        note = getattr(self.backend.host, "note_metrics", None) if self.is_attached else None
        if note is not None:
            scalars = {name: torch.as_tensor(value) for name, value in numbers.items() if isinstance(value, _NUMBERS)}
            note({name: float(value) for name, value in scalars.items() if value.numel() == 1})

    # --- optimisation -----------------------------------------------------------------------------

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the optimizer changes and a checkpoint contains, by name in `named_parameters()`."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the trained parameters; they must be in float32."""
        check_trained_dtypes(self.trained_parameters())
        return build_optimizer(self.trained_parameters(), self.optimizer_settings)

    def schedule_learning_rate(self) -> float:
        """Set the learning rate of this iteration in every parameter group; return its fraction of the peak."""
        # Computed from the iteration, without a scheduler object: a checkpoint has nothing of it to keep.
        factor = learning_rate_factor(
            self.optimizer_settings, iteration=self.iteration, total=self.backend.total_iterations
        )
        for group in self.only_optimizer().param_groups:
            group["lr"] = group["initial_lr"] * factor
        return factor

    def only_optimizer(self) -> torch.optim.Optimizer:
        """Return the one optimizer, as Trainer or Fabric wrapped it."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list), "configure_optimizers returns one optimizer"
        return cast(torch.optim.Optimizer, optimizer)  # the wrappers take on its class

    def backward_loss(self, loss: Tensor) -> None:
        """Add to the gradients, through the precision plugin and the strategy."""
        self.backend.call_hook("on_before_backward", loss)
        self.manual_backward(loss)
        self.backend.call_hook("on_after_backward")

    def clear_gradients(self) -> None:
        """Remove all gradients, without a step."""
        self.only_optimizer().zero_grad()
        self.step_trace.end_step()

    def no_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """Return a context in which gradients are not averaged over ranks, for all parts of a step but the last."""
        return self.backend.no_sync() if enabled else nullcontext()

    def passes(
        self, costs: Tensor, *, max_rows: int, max_tokens: int | None = None, sort: bool = True
    ) -> Iterator[Pass]:
        """Divide rows into passes through this module; see `ippo_lightning.records.passes`."""
        return passes(costs, module=self, max_rows=max_rows, max_tokens=max_tokens, sort=sort)

    def clip_and_step(self, max_grad_norm: float | None) -> float:
        """Clip the gradient, take one optimizer step, clear the gradient.

        Args:
            max_grad_norm: the gradient is scaled down to this norm; None for no clipping.

        Returns:
            The gradient's norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite; no step was taken.
        """
        optimizer = self.only_optimizer()
        # An infinite limit clips nothing, and the norm is measured all the same.
        clipped = self.backend.clip_gradients(optimizer, max_norm=math.inf if max_grad_norm is None else max_grad_norm)
        norm = None if clipped is None else float(clipped)
        if norm is not None and not math.isfinite(norm) and not self._scaler_can_help():
            optimizer.zero_grad()
            self.step_trace.is_over = True
            # No step: Adam's moments would contain the NaN for the rest of the run.
            raise FloatingPointError(f"update: the gradient norm is {norm}; try a lower learning rate or fp32")
        # Callbacks get torch's own optimizer, as from Trainer.
        own = getattr(optimizer, "optimizer", optimizer)
        self.backend.call_hook("on_before_optimizer_step", own)
        optimizer.step()
        self.backend.call_hook("on_before_zero_grad", own)
        optimizer.zero_grad()
        self.step_trace.end_step()
        return math.nan if norm is None else norm

    def keeping_failed_step(self) -> AbstractContextManager[None]:
        """Return a context for the steps of an iteration; see `ippo_lightning.modules.failed_steps`."""
        return keeping_failed_step(self)

    def keep_skipped_step(self, message: str) -> None:
        """Write the step that just failed into the run's folder, before it is repeated without its broken rows.

        Args:
            message: names these rows.
        """
        keep_skipped_step(self, message)

    def _scaler_can_help(self) -> bool:
        """Return whether a gradient scaler will skip the step and scale less; below 1 it cannot help any more."""
        # An overflow of float16 is no mistake: the scaler starts too high on purpose, and comes down by skipping steps.
        return self.backend.scaler is not None and float(self.backend.scaler.get_scale()) >= 1.0

    def call_through_wrapper(self, method: str, *arguments: object) -> Any:
        """Call one of this module's methods so that the strategy's wrapper (DDP) takes part in the forward."""
        if method == self.loss_method:
            self.step_trace.note(arguments)
        return self.backend.call(method, *arguments)

    def loss_through_wrapper(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a minibatch, and sums for the log, through the strategy's wrapper."""
        loss, sums = self.call_through_wrapper(self.loss_method, minibatch)
        return loss, sums

    def why_not_finite(self, *arguments: object) -> str | None:
        """Return "loss" or "gradient" if that of these rows alone is not finite; no gradient stays behind.

        Args:
            arguments: of the loss method.
        """
        # Not through the wrapper: DDP would wait for other ranks, and those try rows of their own, perhaps fewer.
        result = getattr(self, self.loss_method)(*arguments)
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        if not bool(torch.isfinite(loss)):
            return "loss"
        if is_sharded(self):  # the gradient there is that of all ranks
            return None
        self.manual_backward(loss)  # without hooks: this is no part of a step
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        is_finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        # Not the method that also forgets the failed step, which is still to be written.
        self.only_optimizer().zero_grad()
        return None if is_finite else "gradient"

    # --- counters and checkpoints -----------------------------------------------------------------

    def finish_iteration(
        self, metrics: Mapping[str, float], *, episodes: int, optimizer_steps: int, tokens: int
    ) -> dict[str, float]:
        """Count an iteration, log it, and return all its numbers.

        Args:
            metrics: of this iteration.
            episodes: sampled (or demonstrations read) in this iteration, on all ranks.
            optimizer_steps: taken in this iteration.
            tokens: response tokens that took part in an optimizer step, each epoch counted, on all ranks.
        """
        iteration = self.iteration
        self.iteration += 1
        self.episodes_seen += episodes
        self.optimizer_steps += optimizer_steps
        self.tokens_trained += tokens
        numbers = {
            **metrics,
            **memory_of(self, self.only_optimizer()),
            "progress/iterations": self.iteration,
            "progress/episodes": self.episodes_seen,
            "progress/optimizer_steps": self.optimizer_steps,
            "progress/tokens_trained": self.tokens_trained,
        }
        self.backend.log(numbers, iteration=iteration)
        return numbers

    def progress_state(self) -> dict[str, Any]:
        """Return counters and controllers as plain numbers, for a checkpoint."""
        return {**{name: getattr(self, name) for name in _COUNTERS}, "pass_size": self.pass_size.state_dict()}

    def load_progress_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `progress_state` returned."""
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        # Other micro-batches round differently, so a resumed run makes the same ones.
        if "pass_size" in state:  # not in checkpoints of earlier versions
            self.pass_size.load_state_dict(state["pass_size"])

    def on_train_start(self) -> None:
        """Start the random stream of this rank, or continue that of the checkpoint (under `lightning.Trainer`)."""
        if self.is_attached:
            return
        # Here and not when the checkpoint is loaded: what Lightning draws in between must not move the stream.
        if self._random_states is not None:
            restore_random_states(self._random_states, source="ckpt_path")
            self._random_states = None
        else:
            # `seed_everything` leaves its seed in this variable, the same on every rank.
            seed_training(int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed())))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters, controllers and random streams to a checkpoint of `lightning.Trainer`."""
        if not self.is_attached:
            checkpoint[CHECKPOINT_KEY] = {"progress": self.progress_state(), "random": random_states()}
            super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from what `on_save_checkpoint` added."""
        if self.is_attached:
            return
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint[CHECKPOINT_KEY]
        self.load_progress_state(saved["progress"])
        self._random_states = saved["random"]


_NUMBERS = (int, float, Tensor)
_COUNTERS = ("iteration", "episodes_seen", "optimizer_steps", "tokens_trained")
