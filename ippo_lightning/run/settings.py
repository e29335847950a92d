"""How long a run is and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ippo_lightning.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long a run is and what it writes.

    Args:
        run_dir: everything the run writes lies in here.
        max_iterations: iterations (`training_step`s) of the run.
        evaluate_every_n_iterations: on the validation split; 0 for never.
        evaluate_first: evaluate before the first iteration, too.
        test_at_end: evaluate on the test split after the last iteration and write `results.json`.
        checkpoint_every_n_iterations: `checkpoints/iteration_*.ckpt`, the newest also as `last.ckpt`; 0 for only at
            the end.
        keep_last_checkpoints: older ones go.
        best_metric: of the validation split, for example `exact_match`; the checkpoint of its best evaluation is
            `checkpoints/best.ckpt`. Null for none.
        best_mode: whether the largest or the smallest value of `best_metric` is best.
        save_model: write the final model for plain transformers to `model/`.
        resume: go on from the newest whole checkpoint if there is one.
        overwrite: start anew in a folder that holds a run.
        progress_bar: show one, where the output is a terminal.

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

    def __post_init__(self) -> None:
        lowest = {
            "max_iterations": 1,
            "evaluate_every_n_iterations": 0,
            "checkpoint_every_n_iterations": 0,
            "keep_last_checkpoints": 1,
        }
        for name, bound in lowest.items():
            if getattr(self, name) < bound:
                raise UserError(f"loop.{name}: {getattr(self, name)} is out of range; expected an integer >= {bound}")
        if self.best_metric is not None and self.evaluate_every_n_iterations == 0:
            raise UserError(
                f"loop.best_metric: {self.best_metric} is never measured with evaluate_every_n_iterations 0; "
                "expected a number >= 1 there, or null here"
            )

    def is_better(self, value: float, than: float | None) -> bool:
        """Return whether a value of `best_metric` is better than the best so far (null for none)."""
        if value != value or than is None:
            return value == value
        return value > than if self.best_mode == "max" else value < than
