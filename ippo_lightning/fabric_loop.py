"""The Fabric engine: iterations, evaluations, checkpoints, logs and a final model."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric

from ippo_lightning.checkpoint import load_checkpoint, save_checkpoint
from ippo_lightning.engine import any_rank, call_hook
from ippo_lightning.errors import UserError
from ippo_lightning.progress import ProgressBar
from ippo_lightning.run_folder import EVALUATIONS, HISTORY, RESULTS, RunFolder, finite

Split = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long a run is and what it writes.

    Args:
        run_dir: everything the run writes lies in here.
        max_iterations: iterations (`training_step`s) of the run.
        evaluate_every_n_iterations: on the validation split; 0 for never.
        evaluate_first: evaluate before the first iteration, too.
        test_at_end: evaluate on the test split after the last iteration and write `results.json`.
        checkpoint_every_n_iterations: `checkpoints/last.ckpt`; 0 for only at the end.
        save_model: write the final model for plain transformers to `model/`.
        resume: go on from `checkpoints/last.ckpt` if there is one.
        overwrite: start anew in a folder that holds a run.
        progress_bar: show one.

    Raises:
        UserError: a number out of its range.
    """

    run_dir: str = "runs/run"
    max_iterations: int = 30
    evaluate_every_n_iterations: int = 5
    evaluate_first: bool = True
    test_at_end: bool = True
    checkpoint_every_n_iterations: int = 10
    save_model: bool = True
    resume: bool = False
    overwrite: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        lowest = {"max_iterations": 1, "evaluate_every_n_iterations": 0, "checkpoint_every_n_iterations": 0}
        for name, bound in lowest.items():
            if getattr(self, name) < bound:
                raise UserError(f"loop.{name}: {getattr(self, name)} is out of range; expected an integer >= {bound}")


class FabricLoop:
    """Runs a `PolicyModule` through Fabric. Callbacks see it where they would see `lightning.Trainer`.

    Args:
        fabric: with any strategy, precision and loggers.
        module: an `SFTModule`, a `PPOModule`, or a subclass.
        datamodule: text batches, see `ippo_lightning.data`.
        callbacks: in the order in which they act.
        settings: see `LoopSettings`.
        seed: of the training's random streams, another for each rank.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: Any,
        datamodule: Any,
        *,
        callbacks: Sequence[Any] = (),
        settings: LoopSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.fabric = fabric
        self.module = module
        self.datamodule = datamodule
        self.callbacks = list(callbacks)
        self.settings = settings or LoopSettings()
        self.seed = seed
        self.folder = RunFolder(self.settings.run_dir)
        self.should_stop = False
        self.position = {"epoch": 0, "batch": 0}
        self._optimizer: Any = None
        self._checkpointed_at: int | None = None

    # --- what callbacks may ask, as of lightning.Trainer ------------------------------------------------

    @property
    def default_root_dir(self) -> str:
        """The run's folder."""
        return str(self.folder.path)

    @property
    def max_iterations(self) -> int:
        """Iterations of the whole run."""
        return self.settings.max_iterations

    @property
    def is_global_zero(self) -> bool:
        """Whether this process is the one that writes."""
        return self.fabric.is_global_zero

    # --- the run --------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Run to the last iteration, or to where a callback or Ctrl-C stops; return the test metrics (or {}).

        Raises:
            UserError: a mistake in settings, data or reward; the last checkpoint stays.
            KeyboardInterrupt: after Ctrl-C, once the iteration is finished and its checkpoint written.
        """
        start = time.perf_counter()
        self.set_up()
        call_hook(self.callbacks, "setup", self, self.module, "fit")
        call_hook(self.callbacks, "on_fit_start", self, self.module)
        bar = ProgressBar(
            enabled=self.settings.progress_bar and self.is_global_zero,
            total=self.max_iterations,
            title=self.folder.path.name[:16],
        )
        try:
            with bar, self._finish_on_interrupt(bar) as interrupted:
                self._iterate(bar)
        except BaseException as error:
            call_hook(self.callbacks, "on_exception", self, self.module, error)
            raise
        self.checkpoint()
        if interrupted.is_set():
            raise KeyboardInterrupt(f"stopped after iteration {self.module.iteration}: {self.folder.last_checkpoint}")
        results = self._finish(seconds=time.perf_counter() - start)
        call_hook(self.callbacks, "on_fit_end", self, self.module)
        call_hook(self.callbacks, "teardown", self, self.module, "fit")
        return results

    def set_up(self) -> None:
        """Launch, build the optimizer, wrap, and go back to the checkpoint of a run that is resumed."""
        self._launch()
        resumed = self._begin_folder()
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self.module.train()
        wrapper, self._optimizer = self.fabric.setup(self.module, self.module.configure_optimizers())
        wrapper.mark_forward_method(self.module.loss_method)
        self.module.attach(self, wrapper=wrapper)
        torch.manual_seed(self.seed + 1000 * self.fabric.global_rank)
        if resumed:
            self.position = load_checkpoint(
                self.folder.last_checkpoint, module=self.module, optimizer=self._optimizer, callbacks=self.callbacks
            )
            self._checkpointed_at = self.module.iteration
            if self.is_global_zero:
                self.folder.forget_after(self.module.iteration)

    def _launch(self) -> None:
        """Start the other ranks, unless whoever made the Fabric has done so."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            self.fabric.launch()

    def _begin_folder(self) -> bool:
        """Let one rank make the folder ready and all hear of it, also of its mistake: nobody waits for a lost rank."""
        resumed, mistake = False, None
        if self.is_global_zero:
            try:
                resumed = self.folder.begin(resume=self.settings.resume, overwrite=self.settings.overwrite)
            except UserError as error:
                mistake = str(error)
        resumed, mistake = self.fabric.broadcast((resumed, mistake))
        if mistake is not None:
            raise UserError(mistake)
        return resumed

    def set_up_evaluation(self, checkpoint: Path | None = None) -> None:
        """Launch and place the module for `evaluate`, with the parameters of `checkpoint` where one is given."""
        self._launch()
        self.datamodule.prepare_data()
        self.datamodule.setup("test")
        if checkpoint is not None:
            load_checkpoint(checkpoint, module=self.module)
        self.module.to(self.fabric.device)
        self.module.attach(self)

    def evaluate(self, split: Split) -> dict[str, float]:
        """Return the judge's metrics on one split, over all ranks; training's random stream is left alone.

        Raises:
            UserError: the split holds no prompts.
        """
        loader = self.datamodule.val_dataloader() if split == "validation" else self.datamodule.test_dataloader()
        if len(loader) == 0:
            raise UserError(f"data: the {split} split holds 0 batches; expected at least 1 prompt")
        self.module.evaluation_metrics.reset()
        with torch.no_grad(), self.fabric.autocast():
            for index, batch in enumerate(_quiet_iterator(loader)):
                self.module.validation_step(batch, index)
        metrics: dict[str, float] = self.module.evaluation_metrics.compute()
        self.module.evaluation_metrics.reset()
        return metrics

    def checkpoint(self) -> None:
        """Write `checkpoints/last.ckpt`, unless it is that of this very iteration."""
        if self._checkpointed_at == self.module.iteration:
            return
        save_checkpoint(
            self.folder.last_checkpoint,
            module=self.module,
            optimizer=self._optimizer,
            callbacks=self.callbacks,
            position=self.position,
        )
        self._checkpointed_at = self.module.iteration

    # --- parts of a run -----------------------------------------------------------------------------------

    def _iterate(self, bar: ProgressBar) -> None:
        if self.settings.evaluate_first and self.module.iteration == 0:
            self._validate(bar)
        bar.update(completed=self.module.iteration, numbers={})
        batches = self._batches()
        while self.module.iteration < self.max_iterations and not self.should_stop:
            start = time.perf_counter()
            batch = self.fabric.to_device(next(batches))
            iteration = self.module.iteration
            with self.fabric.autocast():
                metrics = self.module.training_step(batch, iteration)
            self._log(iteration, {"seconds": time.perf_counter() - start, **metrics})
            bar.update(completed=self.module.iteration, numbers=metrics)
            if _is_due(self.module.iteration, self.settings.evaluate_every_n_iterations):
                self._validate(bar)
            if _is_due(self.module.iteration, self.settings.checkpoint_every_n_iterations):
                self.checkpoint()
            self.should_stop = any_rank(self.should_stop, device=self.fabric.device)

    def _batches(self) -> Iterator[Any]:
        loader = self.datamodule.train_dataloader()
        if len(loader) == 0:
            raise UserError("data: the training split holds 0 batches; expected at least 1 (is batch_size too large?)")
        skip = self.position["batch"]
        while True:
            if hasattr(loader.sampler, "set_epoch"):
                loader.sampler.set_epoch(self.position["epoch"])
            for index, batch in enumerate(_quiet_iterator(loader)):
                if index >= skip:
                    self.position["batch"] = index + 1
                    yield batch
            skip = 0
            self.position = {"epoch": self.position["epoch"] + 1, "batch": 0}

    def _validate(self, bar: ProgressBar) -> None:
        metrics = self.evaluate("validation")
        if self.is_global_zero:
            self.folder.append(EVALUATIONS, {"iteration": self.module.iteration, "split": "validation", **metrics})
        self.fabric.log_dict(
            {f"validation/{name}": value for name, value in metrics.items()}, step=self.module.iteration
        )
        bar.update(completed=self.module.iteration, numbers=metrics)
        call_hook(self.callbacks, "on_validation_end", self, self.module)

    def _log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if self.is_global_zero:
            self.folder.append(HISTORY, {"iteration": iteration, "max_iterations": self.max_iterations, **metrics})
        self.fabric.log_dict(finite(dict(metrics)), step=iteration)

    def _finish(self, *, seconds: float) -> dict[str, float]:
        if self.settings.save_model and self.is_global_zero:
            self.module.policy.save_pretrained(self.folder.model)
        if not self.settings.test_at_end:
            return {}
        metrics = self.evaluate("test")
        if self.is_global_zero:
            self.folder.write(RESULTS, {**self.describe_evaluation(metrics), "seconds": seconds})
        return metrics

    def describe_evaluation(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Return metrics together with what they were measured on."""
        return {
            **metrics,
            "k": self.module.evaluation.num_responses,
            "samples_per_prompt": self.module.evaluation.num_responses,
            "num_prompts": len(self.datamodule.test_dataloader().dataset),
            "iterations": self.module.iteration,
        }

    @contextmanager
    def _finish_on_interrupt(self, bar: ProgressBar) -> Iterator[threading.Event]:
        """Let the first Ctrl-C end the run after its iteration, the second at once."""
        interrupted = threading.Event()
        if threading.current_thread() is not threading.main_thread():
            yield interrupted
            return

        def on_interrupt(*_: object) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            interrupted.set()
            self.should_stop = True
            bar.say("Ctrl-C: finishing this iteration, then a checkpoint; again to stop at once.")

        before = {kind: signal.signal(kind, on_interrupt) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield interrupted
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def _is_due(iterations_done: int, every: int) -> bool:
    return every > 0 and iterations_done % every == 0


def _quiet_iterator(loader: Any) -> Iterator[Any]:
    """Begin to load without drawing from torch's random stream, as a data loader does for its workers' seed.

    A resumed run begins again in the middle of an epoch, and must find the stream where the unbroken run had it.
    """
    state = torch.get_rng_state()
    batches = iter(loader)
    torch.set_rng_state(state)
    return batches
