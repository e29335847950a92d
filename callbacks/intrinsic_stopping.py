"""End a run when the influence filter leaves too little to learn from."""

from __future__ import annotations

from typing import Any

from lightning import Callback

from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdateStats


class IntrinsicStopping(Callback):
    """Stop when the kept fraction stays under a threshold for `patience` iterations in a row.

    As a policy converges, more of its episodes point away from the demonstrations (Shu et al. 2026, arXiv 2604.01597,
    observe it; the stopping rule is this project's). The kept fraction is that of all ranks: they stop together.

    Args:
        threshold: fraction of kept episodes, in (0, 1].
        patience: iterations in a row.
        min_iterations: never stop before so many iterations.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(self, threshold: float = 0.2, patience: int = 3, min_iterations: int = 0) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise UserError(f"IntrinsicStopping.threshold: {threshold} is out of range; expected a fraction in (0, 1]")
        if patience < 1:
            raise UserError(f"IntrinsicStopping.patience: {patience} is out of range; expected an integer >= 1")
        self.threshold = threshold
        self.patience = patience
        self.min_iterations = min_iterations
        self.iterations_below = 0

    def on_update_end(self, trainer: Any, pl_module: Any, stats: UpdateStats) -> None:
        """Count, and ask the trainer to stop."""
        self.iterations_below = self.count(self.iterations_below, kept_fraction=stats.kept_fraction)
        if self.iterations_below >= self.patience and stats.iteration + 1 >= self.min_iterations:
            trainer.should_stop = True

    def count(self, iterations_below: int, *, kept_fraction: float) -> int:
        """Return how many iterations in a row, this one included, were under the threshold."""
        return iterations_below + 1 if kept_fraction < self.threshold else 0

    def state_dict(self) -> dict[str, Any]:
        """Return the count, so that a resumed run stops where the unbroken one would."""
        return {"iterations_below": self.iterations_below}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the count."""
        self.iterations_below = int(state_dict["iterations_below"])
