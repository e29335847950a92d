"""What a loop needs of a module beside its training step: an evaluation, and a model to save."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from ippo_lightning.modules.base import BaseModule


class EvaluationMetrics(Protocol):
    """Sums and counts that add up over batches and ranks."""

    def compute(self) -> dict[str, float]:
        """Return the metrics by name, over all ranks."""

    def reset(self) -> None:
        """Forget all batches."""


class EvaluatedModule(BaseModule):
    """A module that a `FabricLoop` can evaluate, and whose model it can save."""

    evaluates: ClassVar[Literal["prompts", "episodes"]] = "prompts"
    """What a batch of an evaluation consists of: prompts of texts, or episodes in an environment."""
    makes_rollouts: ClassVar[bool] = True
    """Whether an iteration samples: callbacks that act on rollouts refuse a module without any."""
    evaluation_metrics: EvaluationMetrics
    evaluation_seed: int

    @property
    def reference_kind(self) -> str:
        """What the policy is compared with, for checkpoints; `none` without a reference."""
        return "none"

    def setup(self, stage: str) -> None:
        """Let `lightning.Trainer` run the module from here on, and use its data module."""
        super().setup(stage)
        if self._trainer is not None:
            self.use_data(getattr(self.backend.host, "datamodule", None))

    @abstractmethod
    def use_data(self, datamodule: object) -> None:
        """Take from the data module what was not given, and check that the two fit.

        Args:
            datamodule: after its `setup`; any object, or None.

        Raises:
            UserError: they do not fit.
        """

    def check_evaluation(self) -> None:
        """Refuse an evaluation that would otherwise end a run after its last iteration.

        Raises:
            UserError: something is missing.
        """

    def close(self) -> None:
        """End what runs outside of this process; a loop calls it at the end of a run, also after an error."""

    @abstractmethod
    def sample(self, batch: Any) -> object:
        """Do the forwards of an evaluation of a batch, and count nothing: other ranks may wait for them."""

    @abstractmethod
    def evaluate_batch(self, batch: Any, batch_index: int) -> None:
        """Add a batch to `evaluation_metrics`.

        Args:
            batch: of the validation or test split.
            batch_index: of the batch in its split; it chooses the random stream, so that an evaluation can be repeated.
        """

    @abstractmethod
    def num_evaluated(self, batch: Any) -> int:
        """Return how many prompts, or episodes, a batch of an evaluation contains."""

    @abstractmethod
    def describe_evaluation(self) -> dict[str, Any]:
        """Return the settings behind the metrics, for `results.json`."""

    @abstractmethod
    def save_model(self, folder: Path) -> None:
        """Write the model, without what only a resumed run needs.

        Args:
            folder: exists.
        """

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate one batch."""
        self.evaluate_batch(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate one batch."""
        self.evaluate_batch(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation set (under `lightning.Trainer`)."""
        self._log_evaluation("validation")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set (under `lightning.Trainer`)."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        if self.is_attached:  # the loop reads the metrics itself
            return
        self.log_dict({f"{_SPLITS[split]}/{name}": value for name, value in self.evaluation_metrics.compute().items()})
        # Lightning resets only metrics that are logged as objects, and these are logged as numbers.
        self.evaluation_metrics.reset()

    @contextmanager
    def evaluation_stream(self, batch_index: int, *, of_rank: int) -> Iterator[None]:
        """Inside the block, draw from the random stream of one batch of an evaluation; that of training does not move.

        Args:
            batch_index: of the batch in its split.
            of_rank: which rank's batch it is; 0 if batches are numbered over all ranks.
        """
        # Prime strides, so that no batch of one rank has the seed of another batch of another rank.
        with isolate_rng():
            torch.manual_seed(self.evaluation_seed + 7919 * batch_index + 104729 * of_rank)
            yield


_SPLITS = {"validation": "eval", "test": "test"}
