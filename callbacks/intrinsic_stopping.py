"""End a run when the influence filter leaves too little to learn from."""

from __future__ import annotations

from typing import Protocol

from lightning import Callback

from ippo_lightning.callbacks.requirements import require_rollouts
from ippo_lightning.errors import require_range
from ippo_lightning.records import UpdateStats


class Stoppable(Protocol):
    """What this callback needs of a `lightning.Trainer` or a `FabricLoop`."""

    should_stop: bool
    """True ends the run after the iteration."""


class IntrinsicStopping(Callback):
    """Stop when the kept fraction stays below a threshold for `patience` iterations in a row.

    As a policy converges, more of its episodes point away from the demonstrations. Shu et al. 2026 (arXiv 2604.01597)
    observe this; the stopping rule is an addition of this project. All ranks see the same kept fraction, so they stop
    together.

    Args:
        threshold: fraction of kept episodes, in (0, 1].
        patience: number of iterations in a row, at least 1.
        min_iterations: the run does not stop before this many iterations.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(self, threshold: float = 0.2, patience: int = 3, min_iterations: int = 0) -> None:
        super().__init__()
        require_range("IntrinsicStopping.threshold", threshold, above=0, at_most=1)
        require_range("IntrinsicStopping.patience", patience, at_least=1, integer=True)
        require_range("IntrinsicStopping.min_iterations", min_iterations, at_least=0, integer=True)
        self.threshold = threshold
        self.patience = patience
        self.min_iterations = min_iterations
        self.iterations_below = 0
        self.stopping_reason_message: str | None = None
        """Why the run ended; None if it did not end by this rule."""

    def setup(self, trainer: Stoppable, pl_module: object, stage: str) -> None:
        """Refuse a module without rollouts.

        Raises:
            UserError: it makes none.
        """
        if stage == "fit":
            require_rollouts(self, pl_module)

    def on_update_end(self, trainer: Stoppable, pl_module: object, stats: UpdateStats) -> None:
        """Count the iteration, and stop the run if the fraction was below the threshold for long enough."""
        self.iterations_below = self.count(self.iterations_below, kept_fraction=stats.kept_fraction)
        # Never set to False: another callback may already have stopped the run.
        if self.iterations_below >= self.patience and stats.iteration + 1 >= self.min_iterations:
            trainer.should_stop = True
            self.stopping_reason_message = (
                f"IntrinsicStopping: the kept fraction was below {self.threshold:g} in {self.iterations_below} "
                "iterations in a row."
            )

    def count(self, iterations_below: int, *, kept_fraction: float) -> int:
        """Return how many iterations in a row, this one included, were below the threshold.

        Args:
            iterations_below: the same number before this iteration.
            kept_fraction: of this iteration, over all ranks, in [0, 1].
        """
        return iterations_below + 1 if kept_fraction < self.threshold else 0

    def state_dict(self) -> dict[str, int]:
        """Return the count, so that a resumed run stops at the same iteration as an uninterrupted one."""
        return {"iterations_below": self.iterations_below}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the count."""
        self.iterations_below = int(state_dict["iterations_below"])
