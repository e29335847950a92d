"""The Fabric loop: iterations, evaluations, checkpoints, logs and a final model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, Fabric, LightningDataModule
from lightning.fabric.loggers import Logger
from rich.console import Console

from ippo_lightning.distributed.collectives import all_reduce_max, any_rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.distributed.lockstep import in_step
from ippo_lightning.engine import call_hook, global_seed, seed_training
from ippo_lightning.errors import UserError
from ippo_lightning.modules import TextModule
from ippo_lightning.policies.fabric_quantization import quantize_frozen_layers_only
from ippo_lightning.run.batches import Split, TrainingBatches, evaluation_loader, quiet_iterator
from ippo_lightning.run.checkpoint_folder import CheckpointFolder
from ippo_lightning.run.checkpoints import (
    Best,
    Checkpoint,
    ResumedRun,
    checkpoint_state,
    frozen_fingerprint,
    restore_checkpoint,
)
from ippo_lightning.run.fsdp_strategy import ShardedStrategy, limit_waiting, require_supported
from ippo_lightning.run.loggers import logged_evaluation
from ippo_lightning.run.progress import ProgressBar
from ippo_lightning.run.resuming import callback_settings, data_of, saved_callbacks
from ippo_lightning.run.run_start import begin_folder, check_evaluations, open_folder
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.run.signals import Interrupted, finish_on_signal
from ippo_lightning.run.unfinished import keeping_earlier_iterations
from ippo_lightning.storage.filled_folder import fill_folder
from ippo_lightning.storage.run_folder import EVALUATIONS, HISTORY, RESULTS, JsonObject, RunFolder, finite

__all__ = ["FabricLoop", "LoopSettings"]


class FabricLoop:
    """Runs a module through Fabric. Callbacks get the loop where they would get `lightning.Trainer`.

    Args:
        fabric: with any strategy, precision and loggers.
        module: an `SFTModule`, a `PPOModule`, or a subclass.
        datamodule: text batches, see `ippo_lightning.data`.
        callbacks: called in this order.
        settings: see `LoopSettings`.
        seed: of the random streams of training; each rank has its own. None for that of `seed_everything`, or 0.
        config: the full configuration as YAML, written into the run's folder and its checkpoints.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: TextModule,
        datamodule: LightningDataModule,
        *,
        callbacks: Sequence[Callback] = (),
        settings: LoopSettings | None = None,
        seed: int | None = None,
        config: str = "",
    ) -> None:
        self.fabric = fabric
        self.module = module
        self.datamodule = datamodule
        self.callbacks = list(callbacks)
        self.settings = settings or LoopSettings()
        self.seed = global_seed() if seed is None else seed
        self.config = config
        self.folder = RunFolder(self.settings.run_dir)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints, keep_last=self.settings.keep_last_checkpoints)
        self.should_stop = False
        self.batches = TrainingBatches()
        self.best: Best = {}
        self._bar: ProgressBar | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self.fingerprint = ""
        self._loader: Any = None
        self._callback_settings = callback_settings(self.callbacks)
        self._checkpointed_at: int | None = None
        self._resumed_from: tuple[Path, Checkpoint] | None = None

    # --- what callbacks read, as from lightning.Trainer ------------------------------------------------

    @property
    def default_root_dir(self) -> str:
        """The run's folder."""
        return str(self.folder.path)

    @property
    def max_iterations(self) -> int:
        """Iterations of the run, those before a resume included."""
        return self.settings.max_iterations

    @property
    def loggers(self) -> list[Logger]:
        """The loggers of the Fabric."""
        return list(self.fabric.loggers)

    @property
    def console(self) -> Console | None:
        """The console that keeps the progress bar in its place while printing; None before the run."""
        return self._bar.console if self._bar is not None else None

    @property
    def is_global_zero(self) -> bool:
        """Whether this process is rank 0, which writes the files."""
        return self.fabric.is_global_zero

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
        finally:
            self.folder.release()

    def _fit(self) -> dict[str, float]:
        start = time.perf_counter()
        self.set_up()
        call_hook(self.callbacks, "setup", self, self.module, "fit")
        call_hook(self.callbacks, "on_fit_start", self, self.module)
        open_folder(self, self._resumed_from)
        self._resumed_from = None  # the content of a checkpoint is as large as the model
        bar = self._bar = ProgressBar(
            enabled=self.settings.progress_bar and self.is_global_zero,
            total=self.max_iterations,
            title=self.folder.path.name[:16],
        )
        try:
            with bar, finish_on_signal(bar.say) as signals:
                self._iterate(bar, signals)
        except BaseException as error:
            call_hook(self.callbacks, "on_exception", self, self.module, error)
            raise
        self.checkpoint()
        # A scheduler may signal one rank only.
        signal_number = all_reduce_max(signals[0] if signals else 0, device=self.fabric.device)
        if signal_number:
            where = f"stopped after iteration {self.module.iteration}: {self.checkpoints.last}"
            raise Interrupted(where, number=signal_number)
        results = self._finish(seconds=time.perf_counter() - start)
        call_hook(self.callbacks, "on_fit_end", self, self.module)
        call_hook(self.callbacks, "teardown", self, self.module, "fit")
        return results

    def set_up(self) -> None:
        """Launch, build the optimizer, wrap the module, and load the checkpoint if a run is resumed."""
        require_supported(self.fabric.strategy, self.module)
        self._launch()
        resumes = begin_folder(self)
        self._set_up_data("fit")
        self._loader = self.datamodule.train_dataloader()
        check_evaluations(self)
        self.module.train()
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
            fingerprint=self.fingerprint,
            run=ResumedRun(
                self.module.only_optimizer(),
                self.callbacks,
                self._callback_settings,
                data_of(self._loader, seed=self.seed),
            ),
        )
        self.batches, self.best = TrainingBatches(state["position"]), state["best"].copy()
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
            fingerprint = frozen_fingerprint(self.module)
            path, state = self.checkpoints.read(checkpoint)
            restore_checkpoint(state, source=path, module=self.module, fingerprint=fingerprint)
        self.module.to(self.fabric.device)
        self.module.attach(self)
        return path

    def evaluate(self, split: Split) -> dict[str, float]:
        """Return the metrics of one split, over all ranks; the random stream of training does not change.

        Raises:
            UserError: the split has no prompts.
        """
        loader = evaluation_loader(self.datamodule, split)
        self.module.evaluation_metrics.reset()
        with torch.no_grad(), self.fabric.autocast():
            for (index, batch), is_mine in in_step(list(enumerate(quiet_iterator(loader))), module=self.module):
                if is_mine:
                    self.module.validation_step(batch, index)
                else:  # for the collectives of the other ranks; what is sampled does not count
                    self.module.sample(batch)
        metrics: dict[str, float] = self.module.evaluation_metrics.compute()
        self.module.evaluation_metrics.reset()
        return metrics

    def checkpoint(self) -> None:
        """Write a checkpoint, unless there is one of this iteration."""
        is_best = self.best.get("iteration") == self.module.iteration and not self.best.get("is_written")
        if self._checkpointed_at == self.module.iteration and not is_best:
            return
        if is_best:
            self.best["is_written"] = True
        state = checkpoint_state(
            module=self.module,
            optimizer=cast(torch.optim.Optimizer, self._optimizer),
            callbacks=saved_callbacks(self.callbacks, self._callback_settings),
            data=data_of(self._loader, seed=self.seed),
            position=self.batches.position,
            fingerprint=self.fingerprint,
            best=self.best,
            config=self.config,
            # What the checkpoint covers is on disk before the checkpoint is.
            logs=self.folder.logs.covered() if self.is_global_zero else {},
        )
        self.checkpoints.write(state)
        self._checkpointed_at = self.module.iteration

    # --- parts of a run -----------------------------------------------------------------------------------

    def _iterate(self, bar: ProgressBar, signals: Sequence[int]) -> None:
        # Not again after a resume: even a checkpoint of iteration 0 is written after this evaluation.
        if self.settings.evaluate_first and self._checkpointed_at is None:
            self._validate(bar)
        bar.update(completed=self.module.iteration, numbers={})
        batches = self.batches.of(self._loader)
        while self.module.iteration < self.max_iterations and not self.should_stop:
            with keeping_earlier_iterations(self), self.fabric.autocast():
                batch = self.fabric.to_device(next(batches))
                metrics = cast(dict[str, float], self.module.training_step(batch, self.module.iteration))
            self._log(self.module.iteration - 1, metrics)
            bar.update(completed=self.module.iteration, numbers=metrics)
            if _is_due(self.module.iteration, self.settings.evaluate_every_n_iterations):
                self._validate(bar)
            if _is_due(self.module.iteration, self.settings.checkpoint_every_n_iterations):
                self.checkpoint()
            # Together: a rank that continued alone would wait for the others for ever.
            self.should_stop = any_rank(self.should_stop or bool(signals), device=self.fabric.device)

    def _validate(self, bar: ProgressBar) -> None:
        metrics = self.evaluate("validation")
        row = {"iteration": self.module.iteration, "split": "validation", **metrics}
        if self.is_global_zero:
            self.folder.append(EVALUATIONS, row)
        self.fabric.log_dict(finite(logged_evaluation(row)), step=self.module.iteration)
        bar.update(completed=self.module.iteration, numbers=metrics)
        call_hook(self.callbacks, "on_validation_end", self, self.module)
        self._note_best(metrics)

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        """Remember the best evaluation so far, and write its checkpoint."""
        name = self.settings.best_metric
        if name is None:
            return
        if name not in metrics:
            raise UserError(f"loop.best_metric: {name} is not a metric; expected one of {', '.join(metrics)}")
        if self.settings.is_better(metrics[name], self.best.get("value")):
            self.best = {"metric": name, "value": metrics[name], "iteration": self.module.iteration}
            self.checkpoint()

    def _log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if self.is_global_zero:
            self.folder.append(HISTORY, {"iteration": iteration, "max_iterations": self.max_iterations, **metrics})
        self.fabric.log_dict(finite(dict(metrics)), step=iteration)

    def _finish(self, *, seconds: float) -> dict[str, float]:
        # Before the evaluation, which may fail.
        if self.settings.save_model and self.is_global_zero:
            fill_folder(self.folder.model, self.module.policy.save_pretrained)
        elif self.settings.save_model and is_sharded(self.module):
            # To save a sharded policy, every rank helps to gather it, and rank 0 writes.
            self.module.policy.save_pretrained(self.folder.model)
        if not self.settings.test_at_end:
            return {}
        metrics = self.evaluate("test")
        if self.is_global_zero:
            self.folder.write(RESULTS, {**self.describe_evaluation(metrics), "seconds": seconds})
        return metrics

    def describe_evaluation(self, metrics: Mapping[str, float]) -> JsonObject:
        """Return metrics together with the problems and samples behind them."""
        return {
            **metrics,
            "k": self.module.evaluation.num_responses,
            "samples_per_prompt": self.module.evaluation.num_responses,
            "num_prompts": len(self.datamodule.test_dataloader().dataset),
            "iterations": self.module.iteration,
        }


def _is_due(iterations_done: int, every: int) -> bool:
    return every > 0 and iterations_done % every == 0
