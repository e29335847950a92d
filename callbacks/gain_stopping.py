"""End a run when the coming update promises nothing more for the demonstrations."""

from __future__ import annotations

from typing import Any

from lightning import Callback

from ippo_lightning.callbacks.influence_filter import InfluenceFilter
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.maths import GainEstimate, pooled_gain
from ippo_lightning.records import UpdateStats
from ippo_lightning.selection import Demonstrations
from ippo_lightning.selection.predicted_gain import FEWEST_GROUPS, GainPredictor, clipped_size, interval


class GainStopping(Callback):
    """Stop when the predicted gain on the demonstrations is not above zero, `patience` predictions in a row.

    Before an update, half of the demonstrations chooses and weights the episodes, and the other half predicts the gain
    of this choice: to first order, the decrease of their mean loss. Then the halves change places. Without the halves,
    kept scores would be positive also where they are noise. The mean of the newest `window` predictions has an interval
    with the spread over prompts and over demonstrations; a prediction counts if this interval does not lie above zero.
    docs/guides/stopping.md derives the rule and says what it cannot see.

    It reads the scores of the `InfluenceFilter` of the same run, which must come before it. All ranks see the same
    scores, so they stop together.

    Args:
        patience: number of predictions in a row, at least 1.
        window: number of the newest predictions whose mean decides, at least 1; the first decision waits for all of
            them. One rollout alone rarely tells a gain from none.
        confidence: of the interval, in (0, 1).
        min_iterations: the run does not stop before this many iterations.
        every_n_iterations: predict in every n-th iteration, a multiple of the filter's `every_n_iterations`. With
            `hooks`, a prediction costs a product per layer for each of the filter's `scoring.health_groups`; with
            another method of scoring, its passes once for each group.

    Raises:
        UserError: an argument is out of its range; before the first iteration, a run without a filter whose scores can
            be read.
    """

    def __init__(
        self,
        patience: int = 3,
        window: int = 10,
        confidence: float = 0.95,
        min_iterations: int = 0,
        every_n_iterations: int = 1,
    ) -> None:
        super().__init__()
        require_range("GainStopping.patience", patience, at_least=1, integer=True)
        require_range("GainStopping.window", window, at_least=1, integer=True)
        require_range("GainStopping.confidence", confidence, above=0, below=1)
        require_range("GainStopping.min_iterations", min_iterations, at_least=0, integer=True)
        require_range("GainStopping.every_n_iterations", every_n_iterations, at_least=1, integer=True)
        self.patience = patience
        self.window = window
        self.confidence = confidence
        self.min_iterations = min_iterations
        self.every_n_iterations = every_n_iterations
        self.predictions_without_gain = 0
        self.newest: list[GainEstimate] = []
        """The newest `window` predictions, in units of the loss per iteration."""
        self.stopping_reason_message: str | None = None
        """Why the run ended; None if it did not end by this rule."""
        self._predictor: GainPredictor | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Ask the run's filter for predictions.

        Raises:
            UserError: there is no filter, or its scores are no prediction of the update.
        """
        if stage != "fit":
            return
        influence = self._filter_of(trainer)
        _require_readable(influence, pl_module)
        if self.every_n_iterations % influence.every_n_iterations:
            raise UserError(
                f"GainStopping.every_n_iterations: {self.every_n_iterations} is no multiple of "
                f"InfluenceFilter.every_n_iterations: {influence.every_n_iterations}"
            )
        self._predictor = influence.selector.predictor = GainPredictor(
            every_n_iterations=self.every_n_iterations,
            first_iteration=influence.warmup_iterations,
        )

    def on_update_end(self, trainer: Any, pl_module: Any, stats: UpdateStats) -> None:
        """Log the prediction for this update, count it, and stop the run if there were enough without a gain."""
        predicted = None if self._predictor is None else self._predictor.newest
        if self._predictor is None or predicted is None:
            return
        self._predictor.newest = None  # an iteration that is not filtered must not count it again
        gain = predicted.times(_step_size(pl_module, stats))
        self.newest = [*self.newest, gain][-self.window :]
        low, high = interval(pooled_gain(self.newest), confidence=self.confidence)
        stats.record(
            influence__predicted_gain=gain.mean, influence__predicted_gain_low=low, influence__predicted_gain_high=high
        )
        if len(self.newest) == self.window:
            self.predictions_without_gain = self.count(self.predictions_without_gain, low=low)
        # Never set to False: another callback may already have stopped the run.
        if self.predictions_without_gain >= self.patience and stats.iteration + 1 >= self.min_iterations:
            trainer.should_stop = True
            self.stopping_reason_message = (
                f"GainStopping: {self.predictions_without_gain} predictions in a row without a gain; the interval of "
                f"the newest is {low:.3g} to {high:.3g}."
            )

    def count(self, predictions_without_gain: int, *, low: float) -> int:
        """Return how many predictions in a row, this one included, have an interval that is not above zero.

        Args:
            predictions_without_gain: the same number before this prediction.
            low: the lower end of its interval.
        """
        return 0 if low > 0 else predictions_without_gain + 1

    def state_dict(self) -> dict[str, Any]:
        """Return count and window, so that a resumed run stops at the same iteration as an uninterrupted one."""
        newest = [[*gain[:-1], list(gain.along_groups)] for gain in self.newest]
        return {"predictions_without_gain": self.predictions_without_gain, "newest": newest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore count and window."""
        self.predictions_without_gain = int(state_dict["predictions_without_gain"])
        self.newest = [
            GainEstimate(mean, of_demonstrations, of_rows, freedom, tuple(gains))
            for mean, of_demonstrations, of_rows, freedom, gains in state_dict["newest"]
        ]

    def _filter_of(self, trainer: Any) -> InfluenceFilter:
        callbacks = list(trainer.callbacks)
        filters = [one for one in callbacks if isinstance(one, InfluenceFilter)]
        if len(filters) != 1:
            raise UserError(
                f"GainStopping: the run has {len(filters)} InfluenceFilter callbacks; expected one, whose scores "
                "predict the gain"
            )
        return filters[0]


def _require_readable(influence: InfluenceFilter, pl_module: Any) -> None:
    """Check that a filter's scores predict what an update does to the loss of demonstrations.

    Args:
        influence: the filter.
        pl_module: under training.

    Raises:
        UserError: names the setting.
    """
    selector, scoring = influence.selector, influence.selector.scorer.settings
    if not hasattr(pl_module, "update_settings"):
        raise UserError(
            f"GainStopping: {type(pl_module).__name__} calls no on_update_end; expected a PPOModule or ControlPPOModule"
        )
    if not isinstance(selector.target, Demonstrations):
        raise UserError(
            f"GainStopping: InfluenceFilter.target is {type(selector.target).__name__}; expected Demonstrations, of "
            "which one half can check the other"
        )
    if "scores" not in selector.rule.needs:
        raise UserError(f"GainStopping: InfluenceFilter.rule {selector.rule.name} reads no scores; use influence")
    found = {
        "score_at": (influence.score_at, "rollout_end"),
        "drop_when": (selector.settings.drop_when, "mean"),
        "baselines": (selector.settings.baselines, "all"),
        "scoring.normalise": (scoring.normalise, "none"),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise UserError(
                f"GainStopping: InfluenceFilter.{name} is {value}, with which scores do not predict the update; "
                f"expected {expected}"
            )
    if scoring.health_groups < FEWEST_GROUPS:
        raise UserError(
            f"GainStopping: InfluenceFilter.scoring.health_groups is {scoring.health_groups}; expected at least "
            f"{FEWEST_GROUPS}, two for each half of the demonstrations"
        )


def _step_size(pl_module: Any, stats: UpdateStats) -> float:
    """Return by what the mean score of the kept episodes is multiplied in this update, to first order.

    Args:
        pl_module: under training; the first parameter group of its optimizer is the policy's.
        stats: of the update.
    """
    settings = pl_module.update_settings
    clipped = clipped_size(max_norm=settings.max_grad_norm, norm=stats.metrics.get("update/gradient_norm"))
    shrunken = stats.kept_fraction if settings.denominator == "all" else 1.0
    return float(pl_module.only_optimizer().param_groups[0]["lr"]) * stats.optimizer_steps * clipped * shrunken
