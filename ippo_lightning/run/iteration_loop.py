"""The iterations of a run, with the evaluations, epochs and checkpoints that are due between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import cast

from lightning.pytorch.trainer.states import RunningStage

from ippo_lightning.distributed.collectives import any_rank
from ippo_lightning.errors import UserError
from ippo_lightning.records import Batch
from ippo_lightning.run.checkpoint_folder import CheckpointFolder
from ippo_lightning.run.checkpoints import Best
from ippo_lightning.run.equal_rewards import EqualRewards
from ippo_lightning.run.evaluation import EvaluationSplit, evaluate_split
from ippo_lightning.run.lightning_hooks import call_lightning_hook, errors_named
from ippo_lightning.run.loggers import logged_evaluation
from ippo_lightning.run.progress import ProgressBar
from ippo_lightning.run.trainer_attributes import TrainerAttributes
from ippo_lightning.run.unfinished import keeping_earlier_iterations, keeping_the_iteration
from ippo_lightning.storage.metric_names import shown_metric
from ippo_lightning.storage.run_folder import EVALUATIONS, HISTORY, TEST_PROMPTS, JsonObject, RunFolder, finite


class IterationLoop(TrainerAttributes, ABC):
    """The inner part of a `FabricLoop`, which sets it up, resumes it and ends it."""

    best: Best
    checkpoints: CheckpointFolder
    owes_evaluation = False
    """Whether the evaluation of the newest iteration has failed; a resumed run begins with it."""
    num_prompts = 0
    """Of the newest evaluation, over all ranks."""
    prompt_counts: JsonObject = MappingProxyType({})
    """Of the newest test, see `PromptCounts.compute`; empty without a grader."""
    _is_in_epoch = False
    _checkpointed_at: int | None = None
    _equal_rewards: EqualRewards
    _exact_match: float | None = None
    """Of the newest evaluation, over all ranks; None without one."""
    _trained: frozenset[str]
    """Names of the parameters that train."""
    _loader: Iterable[Batch]

    @abstractmethod
    def checkpoint(self) -> None:
        """Write a checkpoint, unless there is one of this iteration."""

    def call_hook(self, name: str, *arguments: object) -> None:
        """Call a hook of every callback, with this loop, the module and the arguments; outside of `fit`, call none.

        Args:
            name: one of `ippo_lightning.run.lightning_hooks.HOOKS`.
            arguments: see there.
        """
        if self.state.fn is not None:
            call_lightning_hook(self.callbacks, name, self, self.module, *arguments)

    def evaluate(self, split: EvaluationSplit) -> dict[str, float]:
        """Return the metrics of one split, over all ranks; the random stream of training does not change.

        Raises:
            UserError: the split has no prompts.
        """
        metrics, self.num_prompts = evaluate_split(self, split)
        return metrics

    def write_prompt_counts(self, folder: RunFolder) -> None:
        """Write `test_prompts.json` of the newest test; nothing without a grader.

        Args:
            folder: written before its results, so that whoever finds these finds the counts.
        """
        if self.prompt_counts:
            counts = {"k": self.module.describe_evaluation()["k"], **self.prompt_counts}
            folder.write(TEST_PROMPTS, counts, indent=None)

    def _iterate(self, bar: ProgressBar, signals: Sequence[int]) -> None:
        self.batches.begin(self._loader)
        self._equal_rewards = EqualRewards()
        # Not again after a resume: even a checkpoint of iteration 0 is written after this evaluation.
        if self.settings.evaluate_first and self._checkpointed_at is None:
            self._evaluate_first(bar)
        self.call_hook("on_train_start")
        bar.update(completed=self.module.iteration, numbers={})
        if self.owes_evaluation:
            self._evaluate_if_due(bar)
            self._checkpointed_at = None  # the one that is there owes it
            self.checkpoint()
        while self.module.iteration < self.max_iterations and not self.should_stop:
            is_over = self.batches.peek() is None
            if is_over:
                self.batches.end_epoch()
            if self._agreed(is_over):
                self._end_epoch()
            else:
                self._iteration(bar)
            # Together: a rank that continued alone would wait for the others for ever.
            self.should_stop = any_rank(self.should_stop or bool(signals), device=self.fabric.device)
        if self.is_global_zero and not signals and self.module.iteration < self.max_iterations:
            bar.say(f"Stopped after iteration {self.module.iteration} of {self.max_iterations}: {self.why_stopped()}")

    def why_stopped(self) -> str:
        """Return why a callback has ended the run, in its own words if it has some."""
        # the name that Lightning's `EarlyStopping` has
        reasons = [getattr(callback, "stopping_reason_message", None) for callback in self.callbacks]
        return " ".join(str(reason) for reason in reasons if reason) or "a callback set trainer.should_stop."

    def _iteration(self, bar: ProgressBar) -> None:
        """Train on the next batch, and do what is due after it."""
        if not self._is_in_epoch:
            self._is_in_epoch = True
            self.call_hook("on_train_epoch_start")
        index = self.batches.position["batch"]
        with keeping_earlier_iterations(self):
            batch = self.fabric.to_device(self.batches.take())
            self.call_hook("on_train_batch_start", batch, index)
            self._check_trained()
            with self.fabric.autocast(), errors_named():
                metrics = cast(dict[str, float], self.module.training_step(batch, index))
        self.note_metrics(metrics)
        self._log(self.module.iteration - 1, metrics)
        bar.update(completed=self.module.iteration, numbers=metrics)
        self._note_equal_rewards(bar)
        self.call_hook("on_train_batch_end", metrics, batch, index)
        self._evaluate_if_due(bar)
        is_last = self.batches.is_last
        if is_last:
            self.batches.end_epoch()
        if self._agreed(is_last):
            self._end_epoch()
        # After all hooks of the iteration: a resumed run does not call them again.
        if _is_due(self.module.iteration, self.settings.checkpoint_every_n_iterations) or self._has_new_best():
            self.checkpoint()

    def _evaluate_if_due(self, bar: ProgressBar) -> None:
        if _is_due(self.module.iteration, self.settings.evaluate_every_n_iterations):
            with self._stage(RunningStage.VALIDATING), keeping_the_iteration(self):
                self._validate(bar)
        self.owes_evaluation = False

    def _note_equal_rewards(self, bar: ProgressBar) -> None:
        episodes = getattr(getattr(self.module, "last_stats", None), "sampled", None)
        line = self._equal_rewards.line(
            episodes,
            iteration=self.module.iteration,
            is_grade=getattr(self.module, "reward_is_grade", False),
            exact_match=self._exact_match,
        )
        if line is not None and self.is_global_zero:
            bar.say(line)

    def _check_trained(self) -> None:
        changed = self._trained ^ self.module.trained_parameters().keys()
        if changed:
            raise UserError(
                f"callbacks: {min(changed)} was frozen or unfrozen after `setup`; a checkpoint contains what trained "
                "from the beginning"
            )

    def _agreed(self, is_over: bool) -> bool:
        """Return whether rank 0's epoch is over: a hook may wait for all ranks, whose loaders may differ in length."""
        return any_rank(is_over and self.is_global_zero, device=self.fabric.device)

    def _end_epoch(self) -> None:
        if self._is_in_epoch:
            self.call_hook("on_train_epoch_end")
        self._is_in_epoch = False
        self.current_epoch += 1

    @contextmanager
    def _stage(self, stage: RunningStage) -> Iterator[None]:
        before, self.state.stage = self.state.stage, stage
        yield
        self.state.stage = before

    def _evaluate_first(self, bar: ProgressBar) -> None:
        # To callbacks this is Lightning's sanity check: `EarlyStopping` and `ModelCheckpoint` begin after it.
        with self._stage(RunningStage.SANITY_CHECKING):
            self.call_hook("on_sanity_check_start")
            self._validate(bar)
            self.call_hook("on_sanity_check_end")
        if self._has_new_best():
            self.checkpoint()

    def _validate(self, bar: ProgressBar) -> None:
        metrics = self.evaluate("validation")
        self._exact_match = metrics.get("exact_match")
        row = {"iteration": self.module.iteration, "split": "validation", **metrics}
        if self.is_global_zero:
            self.folder.append(EVALUATIONS, row)
        self.fabric.log_dict(finite(logged_evaluation(row)), step=self.module.iteration)
        k = self.module.describe_evaluation().get("k")
        shown = {shown_metric(name, k=k): value for name, value in metrics.items()}
        bar.update(completed=self.module.iteration, numbers=shown, is_evaluation=True)
        if not self.sanity_checking:
            self._has_validated = True
            self.note_metrics(logged_evaluation(row))
        self.call_hook("on_validation_end")
        self._note_best(metrics)

    def _has_new_best(self) -> bool:
        return self.best.get("iteration") == self.module.iteration and not self.best.get("is_written")

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        """Remember the best evaluation so far; its checkpoint is written at the end of the iteration."""
        name = self.settings.best_metric
        if name is None:
            return
        if name not in metrics:
            raise UserError(f"loop.best_metric: {name} is not a metric; expected one of {', '.join(metrics)}")
        if self.settings.is_better(metrics[name], self.best.get("value")):
            mode = self.settings.best_mode
            self.best = {"metric": name, "mode": mode, "value": metrics[name], "iteration": self.module.iteration}

    def _log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if self.is_global_zero:
            self.folder.append(HISTORY, {"iteration": iteration, "max_iterations": self.max_iterations, **metrics})
        self.fabric.log_dict(finite(dict(metrics)), step=iteration)


def _is_due(iterations_done: int, every: int) -> bool:
    return every > 0 and iterations_done % every == 0
