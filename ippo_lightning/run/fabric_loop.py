"""The Fabric loop: iterations, evaluations, checkpoints, logs and a final model."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, Fabric, LightningDataModule
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus

from ippo_lightning.distributed.collectives import all_reduce_max, rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.engine import global_seed, seed_training
from ippo_lightning.errors import UserError
from ippo_lightning.modules.evaluated import EvaluatedModule
from ippo_lightning.policies.fabric_quantization import quantize_frozen_layers_only
from ippo_lightning.run.batches import TrainingBatches, positions_of_ranks
from ippo_lightning.run.checkpoint_folder import CheckpointFolder
from ippo_lightning.run.checkpoints import (
    Checkpoint,
    ResumedRun,
    checkpoint_state,
    frozen_fingerprint,
    restore_callbacks,
    restore_checkpoint,
)
from ippo_lightning.run.chosen_values import chosen_values
from ippo_lightning.run.extra_checkpoints import with_entries_of_callbacks, write_extra
from ippo_lightning.run.fsdp_strategy import ShardedStrategy, limit_waiting, require_supported
from ippo_lightning.run.iteration_loop import IterationLoop
from ippo_lightning.run.lightning_hooks import (
    check_callbacks,
    check_checkpoint_writers,
    check_plain,
    check_states,
    in_lightnings_order,
)
from ippo_lightning.run.loaders import LoaderStream, loader_of
from ippo_lightning.run.progress import ProgressBar
from ippo_lightning.run.resuming import Data, callback_settings, data_of, saved_callbacks
from ippo_lightning.run.run_start import begin_folder, best_of, check_evaluations, open_folder
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.run.signals import Interrupted, finish_on_signal
from ippo_lightning.storage.filled_folder import fill_folder
from ippo_lightning.storage.run_folder import RESULTS, JsonObject, RunFolder

__all__ = ["FabricLoop", "LoopSettings"]


class FabricLoop(IterationLoop):
    """Runs a module through Fabric. Callbacks get the loop where they would get `lightning.Trainer`.

    Args:
        fabric: with any strategy, precision and loggers.
        module: an `SFTModule`, a `PPOModule`, a `ControlPPOModule`, or a subclass.
        datamodule: its batches, see `ippo_lightning.data`.
        callbacks: called in this order, those that write checkpoints last; docs/guides/callbacks.md lists the hooks.
        settings: see `LoopSettings`.
        seed: of the random streams of training; each rank has its own. None for that of `seed_everything`, or 0.
        config: the full configuration as YAML, written into the run's folder and its checkpoints.
        command: that started the run, for its report; empty without one.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: EvaluatedModule,
        datamodule: LightningDataModule,
        *,
        callbacks: Sequence[Callback] = (),
        settings: LoopSettings | None = None,
        seed: int | None = None,
        config: str = "",
        command: str = "",
    ) -> None:
        self.fabric = fabric
        self.module = module
        self.datamodule = datamodule
        self.callbacks = in_lightnings_order(callbacks)
        self.settings = settings or LoopSettings()
        self.seed = global_seed() if seed is None else seed
        self.config, self.command = config, command
        self.folder = RunFolder(self.settings.run_dir)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints, keep_last=self.settings.keep_last_checkpoints)
        self.batches = TrainingBatches(seed=self.seed)
        self.best = {}
        self._begin_attributes()
        self._optimizer: torch.optim.Optimizer | None = None
        self.fingerprint = ""
        self._callback_settings = callback_settings(self.callbacks)
        self._resumed_from: tuple[Path, Checkpoint] | None = None
        self._has_begun = False

    # --- the run --------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Run to the last iteration, or until a callback or a signal stops the run; return the test metrics, or {}.

        Raises:
            UserError: wrong settings, data or reward; the last checkpoint stays.
            Interrupted: after Ctrl-C, SIGTERM or SIGUSR1, when the iteration is done and its checkpoint is written.
            FloatingPointError: NaN or infinity somewhere; the last checkpoint stays.
            OSError: the disk is full, or a sampler's engine has ended; the last checkpoint stays.
        """
        try:
            return self._fit()
        except BaseException as error:
            self._tell_callbacks(error)
            raise
        finally:
            self.state.fn = None
            self.module.close()
            self.folder.release()

    def _fit(self) -> dict[str, float]:
        start = time.perf_counter()
        check_callbacks(self.callbacks)
        self._set_up()
        self._has_begun = True
        self.call_hook("on_fit_start")
        open_folder(self, self._resumed_from)
        self._resumed_from = None  # the content of a checkpoint is as large as the model
        bar = self._bar = ProgressBar(
            enabled=self.settings.progress_bar and self.is_global_zero,
            total=self.max_iterations,
            title=self.folder.path.name[:16],
        )
        with bar, finish_on_signal(bar.say) as signals:
            self._iterate(bar, signals)
        # Before the hooks at the end, which a run that is resumed with more iterations has not had.
        self.checkpoint()
        # A scheduler may signal one rank only.
        signal_number = all_reduce_max(signals[0] if signals else 0, device=self.fabric.device)
        if signal_number:
            where = f"stopped after iteration {self.module.iteration}: {self.checkpoints.last}"
            raise Interrupted(where, number=signal_number)
        if self.module.iteration == 0:
            raise UserError("callbacks: one set trainer.should_stop before the first iteration; nothing was trained")
        if self._is_in_epoch:
            self.call_hook("on_train_epoch_end")
        self.call_hook("on_train_end")
        results = self._finish(seconds=time.perf_counter() - start)
        self.call_hook("on_fit_end")
        self.datamodule.teardown("fit")
        self.call_hook("teardown", "fit")
        return results

    def _tell_callbacks(self, error: BaseException) -> None:
        self.state.status = TrainerStatus.INTERRUPTED
        try:
            self.call_hook("on_exception", error)
        except Exception as second:  # it must not hide the first error
            warnings.warn(str(second), stacklevel=2)

    def set_up(self) -> None:
        """Launch, build the optimizer, wrap the module, and load the checkpoint if a run is resumed; train nothing."""
        self._set_up()
        self.folder.release()

    def _set_up(self) -> None:
        require_supported(self.fabric.strategy, self.module)
        self._launch()
        resumes = begin_folder(self)
        self.state.fn, self.state.stage = TrainerFn.FITTING, RunningStage.TRAINING
        self._set_up_data("fit")
        self._loader = loader_of(self.datamodule, "training")
        # A data set may draw at random; training draws nothing here.
        mine = LoaderStream(0).run(lambda: data_of(self._loader, seed=self.seed))
        self._data: Data = self.fabric.broadcast(mine)  # ranks may read data of their own; a checkpoint knows one
        check_evaluations(self)
        # Before the optimizer is built: a hook may freeze parameters, or add some.
        self.call_hook("setup", "fit")
        check_states(self.callbacks)
        check_checkpoint_writers(self.callbacks, self.checkpoints.path)
        self.module.train()
        self._trained = frozenset(self.module.trained_parameters())
        # Before sharding and before any forward, see `frozen_fingerprint`.
        self.fingerprint = frozen_fingerprint(self.module)
        wrapper, self._optimizer = self._wrapped()
        # Fabric refuses to run a module by another method than `forward`, unless it is told the name.
        wrapper.mark_forward_method(self.module.loss_method)
        self.module.attach(self, wrapper=wrapper)
        # After everything that draws at random is built: another model or data set does not move this stream.
        seed_training(self.seed)
        if resumes:
            self._resume()

    def _set_up_data(self, stage: str) -> None:
        """Prepare the data, first in one process per machine: the others then find what it downloaded."""
        with self.fabric.rank_zero_first(local=True):
            self.datamodule.prepare_data()
        self.datamodule.setup(stage)
        self.module.use_data(self.datamodule)

    def _wrapped(self) -> tuple[Any, torch.optim.Optimizer]:
        """Return the module and its optimizer, wrapped by Fabric."""
        quantize_frozen_layers_only(self.fabric.strategy.precision, self.module)
        # Sharding replaces the parameters: the optimizer comes after it.
        if isinstance(self.fabric.strategy, ShardedStrategy):
            wrapper = self.fabric.setup_module(self.module)
            optimizer: Any = self.fabric.setup_optimizers(self.module.configure_optimizers())
            self.module._fabric_optimizers = [optimizer]  # as `Fabric.setup` does for both together
            return wrapper, optimizer
        wrapper, optimizer = self.fabric.setup(self.module, self.module.configure_optimizers())
        return wrapper, optimizer

    def _resume(self) -> None:
        """Load the newest complete checkpoint; the folder changes later, if nothing refuses the run."""
        path, state = self.checkpoints.read_newest()
        restore_checkpoint(
            state,
            source=path,
            module=self.module,
            run=ResumedRun(self.module.only_optimizer(), self._data, self.fingerprint),
        )
        self.call_hook("on_load_checkpoint", state)
        # Checkpoints of earlier versions have no entry of the loop, and the position of rank 0 alone.
        own = state.get("loop") or {"positions": [], "metrics": {}, "datamodule": {}}
        if own["datamodule"]:
            self.datamodule.load_state_dict(own["datamodule"])
        # Behind everything that may draw: it continues the random streams.
        restore_callbacks(state, source=path, callbacks=self.callbacks, callback_settings=self._callback_settings)
        mine = next(iter(own["positions"][rank() : rank() + 1]), state["position"])
        self.batches, self.best = TrainingBatches(mine, seed=self.seed), best_of(state, self.settings)
        self.current_epoch = state["position"]["epoch"]
        self._is_in_epoch = state["position"]["batch"] > 0
        self.note_metrics(own["metrics"])
        self.owes_evaluation = bool(own.get("owes_evaluation", False))
        self._checkpointed_at, self._resumed_from = self.module.iteration, (path, state)

    def _launch(self) -> None:
        """Start the other ranks, unless the caller has already done so."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            limit_waiting(self.fabric.strategy, seconds=self.settings.rank_timeout)
            self.fabric.launch()

    def set_up_evaluation(self, checkpoint: str | None = None) -> Path | None:
        """Launch and prepare the module for `evaluate`; return the file of the checkpoint whose parameters it has.

        Args:
            checkpoint: `last` or `best` of the run's folder, or a path; None for the parameters as they are.
        """
        self._launch()
        self._set_up_data("test")
        path = None
        if checkpoint is not None:
            path, state = self.checkpoints.read(checkpoint)
            restore_checkpoint(state, source=path, module=self.module)
        self.module.to(self.fabric.device)
        self.module.attach(self)
        return path

    def checkpoint(self) -> None:
        """Write a checkpoint, unless there is one of this iteration."""
        is_best = self._has_new_best()
        if self._checkpointed_at == self.module.iteration and not is_best:
            return
        if is_best:
            self.best["is_written"] = True
        self.checkpoints.write(self._state())
        self._checkpointed_at = self.module.iteration

    def save_checkpoint(
        self, filepath: str | os.PathLike[str], weights_only: bool | None = None, storage_options: object = None
    ) -> None:
        """Write a checkpoint to any file, for `ModelCheckpoint` and callbacks like it; every rank must call this.

        Args:
            filepath: none of the run's own checkpoints.
            weights_only: without what only a resumed run needs.
            storage_options: not used.

        Raises:
            UserError: the file is one of the run's own, or the run has failed on one of several ranks.
        """
        if not self._has_begun:  # of a run that is refused, nothing is worth the file of an earlier one
            raise UserError(f"callbacks: {filepath} cannot be written before the run has begun")
        write_extra(self, Path(filepath), self._state, weights_only=bool(weights_only))

    def _state(self) -> Checkpoint:
        callbacks = saved_callbacks(self.callbacks, self._callback_settings)
        for saved in callbacks:
            check_plain(saved["state"], f"callbacks: {saved['name']}.state_dict() returned")
        datamodule = self.datamodule.state_dict()
        check_plain(datamodule, f"data: {type(self.datamodule).__name__}.state_dict() returned")
        state = checkpoint_state(
            module=self.module,
            optimizer=cast(torch.optim.Optimizer, self._optimizer),
            callbacks=callbacks,
            data=self._data,
            position=self.batches.position,
            fingerprint=self.fingerprint,
            best=self.best,
            config=self.config,
            # What the checkpoint covers is on disk before the checkpoint is.
            logs=self.folder.logs.covered() if self.is_global_zero else {},
        )
        state["loop"] = {
            "positions": positions_of_ranks(self.batches.position),
            "metrics": dict(self.numbers),
            "owes_evaluation": self.owes_evaluation,
            "datamodule": datamodule,
        }
        return with_entries_of_callbacks(state, self.call_hook)

    # --- parts of a run -----------------------------------------------------------------------------------

    def _finish(self, *, seconds: float) -> dict[str, float]:
        # Before the evaluation, which may fail.
        if self.settings.save_model and self.is_global_zero:
            fill_folder(self.folder.model, self.module.save_model)
        elif self.settings.save_model and is_sharded(self.module):
            # To save a sharded policy, every rank helps to gather it, and rank 0 writes.
            self.module.save_model(self.folder.model)
        if not self.settings.test_at_end:
            return {}
        self.state.fn = TrainerFn.TESTING
        with self._stage(RunningStage.TESTING):
            metrics = self.evaluate("test")
            self.call_hook("on_test_end")
        self.state.fn = TrainerFn.FITTING
        if self.is_global_zero:
            self.write_prompt_counts(self.folder)
            # The results end the run: after a power failure, no checkpoint gives lost lines back.
            self.folder.sync()
            numbers = {**self.describe_evaluation(metrics), "seconds": seconds}
            stopped = {"stopped": self.why_stopped()} if self.module.iteration < self.max_iterations else {}
            self.folder.write(RESULTS, {**numbers, **stopped, "chosen": chosen_values(self)})
        return metrics

    def describe_evaluation(self, metrics: Mapping[str, float]) -> JsonObject:
        """Return metrics together with the problems and samples behind them."""
        return {
            **metrics,
            **self.module.describe_evaluation(),
            f"num_{self.module.evaluates}": self.num_prompts,
            "iterations": self.module.iteration,
        }
