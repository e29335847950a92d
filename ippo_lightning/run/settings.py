"""How long a run is and what it writes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ippo_lightning.errors import UserError, require_choice, require_range


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long a run is and what it writes.

    Args:
        run_dir: folder of everything that the run writes.
        max_iterations: iterations (`training_step`s) of the run.
        evaluate_every_n_iterations: on the validation split; 0 for never.
        evaluate_first: also evaluate before the first iteration.
        test_at_end: evaluate on the test split after the last iteration and write `results.json`.
        checkpoint_every_n_iterations: `checkpoints/iteration_*.ckpt`, the newest also as `last.ckpt`; 0 for one
            at the end only.
        keep_last_checkpoints: how many are kept; older ones are deleted.
        best_metric: of the validation split, for example `exact_match`; the checkpoint of its best evaluation is
            `checkpoints/best.ckpt`. Null for none.
        best_mode: whether the largest or the smallest value of `best_metric` is best.
        save_model: write the final model for plain transformers to `model/`.
        resume: resume from the newest complete checkpoint, if there is one.
        overwrite: start again in a folder that has a run.
        progress_bar: show one; if the output is no terminal, write a line per iteration.
        rank_timeout: seconds that a rank waits for the others in a collective; then it reports so and ends. The
            longest time that one rank may work alone, for example to write a model. Of groups that this loop launches.

    Raises:
        UserError: a number out of its range.
    """

    run_dir: str = "runs/run"
    max_iterations: int = 30
    evaluate_every_n_iterations: int = 5
    evaluate_first: bool = True
    test_at_end: bool = True
    checkpoint_every_n_iterations: int = 10
    keep_last_checkpoints: int = 1
    best_metric: str | None = None
    best_mode: Literal["max", "min"] = "max"
    save_model: bool = True
    resume: bool = False
    overwrite: bool = False
    progress_bar: bool = True
    rank_timeout: float = 600.0

    def __post_init__(self) -> None:
        lowest = {
            "max_iterations": 1,
            "evaluate_every_n_iterations": 0,
            "checkpoint_every_n_iterations": 0,
            "keep_last_checkpoints": 1,
        }
        for name, bound in lowest.items():
            require_range(f"loop.{name}", getattr(self, name), at_least=bound, integer=True)
        require_range("loop.rank_timeout", self.rank_timeout, above=0, below=math.inf)
        require_choice("loop.best_mode", self.best_mode, ("max", "min"))
        if self.best_metric is not None and self.evaluate_every_n_iterations == 0:
            raise UserError(
                f"loop.best_metric: {self.best_metric} needs an evaluation, and evaluate_every_n_iterations is 0; "
                "set that to 1 or more, or best_metric to null"
            )

    def is_better(self, value: float, than: float | None) -> bool:
        """Return whether a value of `best_metric` is better than the best so far.

        Args:
            value: of this evaluation; NaN is never better.
            than: the best so far; None for none.
        """
        # NaN (0 / 0, for example without right answers) is equal to nothing, and never the best.
        if value != value or than is None:
            return value == value
        return value > than if self.best_mode == "max" else value < than
