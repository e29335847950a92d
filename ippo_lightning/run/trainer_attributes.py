"""What Lightning's callbacks read of their trainer, with the values of a `FabricLoop`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from lightning import LightningModule
from lightning.fabric.loggers import Logger
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerState
from torch import Tensor

from ippo_lightning.distributed.collectives import rank, world_size
from ippo_lightning.errors import UserError
from ippo_lightning.run.loaders import length_of

if TYPE_CHECKING:
    from lightning import Fabric, LightningDataModule
    from rich.console import Console

    from ippo_lightning.modules.evaluated import EvaluatedModule
    from ippo_lightning.run.batches import TrainingBatches
    from ippo_lightning.run.progress import ProgressBar
    from ippo_lightning.run.settings import LoopSettings
    from ippo_lightning.storage.run_folder import RunFolder


class MissingAttributeError(UserError, AttributeError):
    """A callback reads something that only `lightning.Trainer` has; `hasattr` and `getattr` see an AttributeError."""


class TrainerAttributes:
    """The part of `lightning.Trainer` that its callbacks read.

    One iteration is one training batch and one step: `global_step` counts iterations, as the step of the log does. An
    epoch is one pass over the training data.
    """

    fabric: Fabric
    module: EvaluatedModule
    datamodule: LightningDataModule
    callbacks: list[Any]
    settings: LoopSettings
    folder: RunFolder
    batches: TrainingBatches

    fast_dev_run = False
    barebones = False
    received_sigterm = False
    ckpt_path: str | None = None
    accumulate_grad_batches = 1
    min_epochs = min_steps = max_time = None
    max_epochs = -1

    def _begin_attributes(self) -> None:
        self.should_stop = False
        self.state = TrainerState()
        self.current_epoch = 0
        """Epochs of training data that are done, on all ranks alike."""
        self.numbers: dict[str, float] = {}
        """The newest value of each logged metric; a checkpoint keeps them."""
        self._bar: ProgressBar | None = None
        self._has_validated = False

    def __getattr__(self, name: str) -> NoReturn:
        """Explain what a callback for `lightning.Trainer` does not find here."""
        # Names with an underscore are read by Python itself (copying, pickling).
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingAttributeError(
            f"callbacks: trainer.{name} is read, which FabricLoop does not have; use another callback, or Trainer"
        )

    # --- where the run is ---------------------------------------------------------------------------------

    @property
    def max_iterations(self) -> int:
        """Iterations of the run, those before a resume included."""
        return self.settings.max_iterations

    @property
    def max_steps(self) -> int:
        """As `max_iterations`."""
        return self.max_iterations

    @property
    def estimated_stepping_batches(self) -> int:
        """As `max_iterations`."""
        return self.max_iterations

    @property
    def global_step(self) -> int:
        """Iterations done."""
        return self.module.iteration

    @property
    def sanity_checking(self) -> bool:
        """Whether the evaluation before the first iteration is under way."""
        return self.state.stage == RunningStage.SANITY_CHECKING

    @property
    def training(self) -> bool:
        """Whether an iteration may be under way."""
        return self.state.stage == RunningStage.TRAINING

    @property
    def validating(self) -> bool:
        """Whether an evaluation on the validation split is under way."""
        return self.state.stage == RunningStage.VALIDATING

    @property
    def testing(self) -> bool:
        """Whether the evaluation on the test split is under way."""
        return self.state.stage == RunningStage.TESTING

    @property
    def evaluating(self) -> bool:
        """As `testing`; an evaluation during training counts as training, as for `lightning.Trainer`."""
        return self.state.fn == TrainerFn.TESTING

    @property
    def predicting(self) -> bool:
        """Never: this loop does not predict."""
        return False

    # --- metrics and data ---------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The newest value of each logged metric, those of an evaluation as `eval/<name>`."""
        return {name: torch.tensor(float(value)) for name, value in self.numbers.items()}

    logged_metrics = progress_bar_metrics = callback_metrics

    @property
    def val_check_interval(self) -> int | float:
        """Iterations between two evaluations; 1.0 without any, as for a Trainer without validation data."""
        return self.settings.evaluate_every_n_iterations or 1.0

    @property
    def check_val_every_n_epoch(self) -> int | None:
        """None: evaluations follow the iterations, and not the epochs; 1 without any."""
        return None if self.settings.evaluate_every_n_iterations else 1

    @property
    def enable_validation(self) -> bool:
        """Whether there are evaluations."""
        return self.settings.evaluate_every_n_iterations > 0

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of an evaluation on this rank; infinity if the loader does not know, 0 without evaluations."""
        if not self.enable_validation:
            return [0]
        length = length_of(self.datamodule.val_dataloader())
        return [math.inf if length is None else length]

    @property
    def num_training_batches(self) -> int | float:
        """Batches of an epoch on this rank; infinity if the loader does not know."""
        length = length_of(self.datamodule.train_dataloader())
        return math.inf if length is None else length

    @property
    def fit_loop(self) -> SimpleNamespace:
        """What `ModelCheckpoint` reads of Lightning's inner loops."""
        progress = SimpleNamespace(is_last_batch=self.batches.is_last)
        validation = SimpleNamespace(_has_run=self._has_validated)
        return SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress, val_loop=validation))

    # --- objects of the run -------------------------------------------------------------------------------

    @property
    def lightning_module(self) -> LightningModule:
        """The module."""
        return self.module

    model = lightning_module

    @property
    def strategy(self) -> StrategyView:
        """Fabric's strategy, with what Trainer's has in addition."""
        return StrategyView(self.fabric.strategy)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The one optimizer."""
        return [self.module.only_optimizer()]

    @property
    def loggers(self) -> list[Logger]:
        """The loggers of the Fabric."""
        return [with_save_dir(logger) for logger in self.fabric.loggers]

    @property
    def logger(self) -> Logger | None:
        """The first logger."""
        return next(iter(self.loggers), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """The callbacks of this class."""
        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """The callbacks of this class."""
        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first of them."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first of them."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def default_root_dir(self) -> str:
        """The run's folder."""
        return str(self.folder.path)

    log_dir = default_root_dir

    @property
    def console(self) -> Console | None:
        """The console that keeps the progress bar in its place while printing; None before the run."""
        return self._bar.console if self._bar is not None else None

    def print(self, *values: object) -> None:
        """Print on rank 0."""
        if self.is_global_zero:
            print(*values)

    # --- ranks --------------------------------------------------------------------------------------------

    @property
    def is_global_zero(self) -> bool:
        """Whether this process is rank 0, which writes the files."""
        return self.fabric.is_global_zero

    @property
    def global_rank(self) -> int:
        """Of this process."""
        return self.fabric.global_rank

    @property
    def local_rank(self) -> int:
        """Of this process on its machine."""
        return self.fabric.local_rank

    @property
    def node_rank(self) -> int:
        """Of this machine."""
        return self.fabric.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return world_size()

    num_devices = world_size

    def note_metrics(self, metrics: Mapping[str, float]) -> None:
        """Take over the numbers of an iteration or an evaluation for `callback_metrics`."""
        self.numbers.update({name: float(value) for name, value in metrics.items()})


class StrategyView:
    """A Fabric strategy as callbacks of `lightning.Trainer` use theirs.

    Args:
        strategy: has broadcast, barrier and decisions over ranks.
    """

    def __init__(self, strategy: object) -> None:
        self._strategy = strategy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        """Delete a file, on rank 0."""
        if rank() == 0:
            Path(filepath).unlink(missing_ok=True)


def with_save_dir(logger: Any) -> Any:
    """Return a logger that has what `ModelCheckpoint` uses of Trainer's loggers.

    Args:
        logger: Fabric's gets what it lacks; Trainer's own stays as it is.
    """
    # In the object itself: callbacks tell loggers apart by their class, which a wrapper would hide.
    if not hasattr(logger, "save_dir"):
        logger.save_dir = logger.root_dir
    if not hasattr(logger, "after_save_checkpoint"):
        logger.after_save_checkpoint = lambda checkpoint_callback: None
    return logger
