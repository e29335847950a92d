"""A run ends when several predictions in a row promise no gain on the demonstrations."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import GainStopping, InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdateStats
from ippo_lightning.selection import AverageReward
from ippo_lightning.selection.predicted_gain import clipped_size
from ippo_lightning.storage.run_folder import HISTORY, RESULTS, RunFolder

NAMES = ("influence/predicted_gain", "influence/predicted_gain_low", "influence/predicted_gain_high")


def data() -> Any:
    return tiny_data(num_influence_demonstrations=16)


def fitted(folder: Path, stopping: GainStopping, *, influence: InfluenceFilter | None = None, **changes: Any) -> Any:
    module = tiny_module()
    callbacks = [influence or InfluenceFilter(), stopping]
    tiny_loop(folder, module, callbacks=callbacks, data=data(), **changes).fit()
    return module


def predictions(folder: Path) -> list[tuple[float, ...]]:
    rows = RunFolder(folder).read_rows(HISTORY)
    return [tuple(row[name] for name in NAMES) for row in rows if NAMES[0] in row]


def test_a_run_stops_after_its_patience_and_logs_each_prediction(tmp_path: Path) -> None:
    # an interval this wide contains zero
    module = fitted(tmp_path / "run", GainStopping(patience=2, window=1, confidence=1 - 1e-9), max_iterations=5)
    found = predictions(tmp_path / "run")
    assert module.iteration == len(found) == 2
    assert all(low < mean < high for mean, low, high in found)


def test_a_stopped_run_says_which_rule_ended_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = GainStopping(patience=2, window=1, confidence=1 - 1e-9)
    fitted(tmp_path / "run", stopping, max_iterations=5, test_at_end=True)
    reason = "GainStopping: 2 predictions in a row without a gain; the interval of the newest is "
    assert f"Stopped after iteration 2 of 5: {reason}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / RESULTS).read_text())["stopped"].startswith(reason)
    fitted(tmp_path / "whole", GainStopping(window=1, min_iterations=99), max_iterations=2, test_at_end=True)
    assert "Stopped" not in capsys.readouterr().err
    assert "stopped" not in json.loads((tmp_path / "whole" / RESULTS).read_text())


def test_window_and_confidence_change_when_a_run_ends(tmp_path: Path) -> None:
    rules = [
        GainStopping(patience=1, window=1, confidence=1 - 1e-9),
        GainStopping(patience=1, window=3, confidence=1 - 1e-9),
        GainStopping(patience=9, window=1, confidence=1e-9),
    ]
    ends = [fitted(tmp_path / str(place), rule, max_iterations=4).iteration for place, rule in enumerate(rules)]
    assert ends == [1, 3, 4]
    spans = [[high - low for _, low, high in predictions(tmp_path / name)] for name in ("0", "2")]
    assert spans[0][0] > 1e3 * spans[1][0]


def test_a_run_goes_on_before_its_fewest_iterations_and_predicts_every_nth(tmp_path: Path) -> None:
    stopping = GainStopping(patience=1, window=1, confidence=1 - 1e-9, min_iterations=3, every_n_iterations=2)
    module = fitted(tmp_path / "run", stopping, max_iterations=6)
    assert module.iteration == 3
    assert len(predictions(tmp_path / "run")) == 2


def test_an_iteration_without_a_prediction_scores_nothing_along_groups(tmp_path: Path) -> None:
    influence = InfluenceFilter()
    fitted(tmp_path, GainStopping(every_n_iterations=2), influence=influence, max_iterations=2)
    assert len(predictions(tmp_path)) == 1
    # of the newest iteration, which is not due
    assert not influence.selector.scorer.all_groups


def test_a_filter_that_keeps_all_where_none_is_kept_is_predicted_with_all_rows(tmp_path: Path) -> None:
    influence = InfluenceFilter(threshold=1e30, on_empty="keep_all")
    fitted(tmp_path, GainStopping(window=1, min_iterations=99), influence=influence)
    # without the rows that are trained on, each of these would be 0
    assert all(gain != 0 for gain, *_ in predictions(tmp_path))


def test_a_gain_sets_the_count_back() -> None:
    stopping = GainStopping()
    assert stopping.count(2, low=1e-9) == 0
    assert stopping.count(2, low=0.0) == 3


def test_a_resumed_run_stops_where_an_unbroken_one_does(tmp_path: Path) -> None:
    def stopping() -> GainStopping:
        return GainStopping(patience=2, window=2, confidence=1 - 1e-9)

    whole = fitted(tmp_path / "whole", stopping(), max_iterations=6)
    fitted(tmp_path / "broken", stopping(), max_iterations=2)
    resumed = fitted(tmp_path / "broken", stopping(), max_iterations=6, resume=True)
    assert resumed.iteration == whole.iteration == 3
    assert same(trainable(whole), trainable(resumed))
    assert predictions(tmp_path / "whole") == predictions(tmp_path / "broken")


def test_trainer_predicts_and_stops_as_the_loop_does(tmp_path: Path) -> None:
    def stopping() -> GainStopping:
        return GainStopping(patience=2, window=1, confidence=1 - 1e-9)

    fitted(tmp_path / "loop", stopping(), max_iterations=4)
    seen: list[tuple[float, ...]] = []
    seed_everything(5, verbose=False)  # as `tiny_loop`
    module = tiny_module()
    callbacks: Any = [InfluenceFilter(), stopping(), Seen(seen)]
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, callbacks=callbacks,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data())
    assert module.iteration == 2
    assert seen == predictions(tmp_path / "loop")


class Seen(GainStopping):
    """Notes the predictions that the callback before it has logged."""

    def __init__(self, seen: list[tuple[float, ...]]) -> None:
        super().__init__()
        self.seen = seen

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Ask for nothing."""

    def on_update_end(self, trainer: Any, pl_module: Any, stats: UpdateStats) -> None:
        self.seen.append(tuple(stats.metrics[name] for name in NAMES))


def test_the_prediction_is_what_the_scores_of_halves_give(tmp_path: Path) -> None:
    influence = InfluenceFilter(power=0)
    kept: list[Any] = []
    decide = influence.selector.scorer.score

    def noted(*arguments: Any, **named: Any) -> Any:
        kept.append(decide(*arguments, **named))
        return kept[-1]

    influence.selector.scorer.score = noted  # type: ignore[method-assign]
    stopping = GainStopping()
    fitted(tmp_path / "run", stopping, influence=influence, max_iterations=1)
    scores = kept[0].group_scores.double()
    halves = [scores[half::2].mean(dim=0) for half in (0, 1)]
    gains = [float(halves[1 - half][halves[half] > 0].mean()) for half in (0, 1)]
    row = RunFolder(tmp_path / "run").read_rows(HISTORY)[0]
    size = 1e-3 * row["update/optimizer_steps"] * clipped_size(max_norm=1.0, norm=row["update/gradient_norm"])
    assert row[NAMES[0]] == pytest.approx(size * sum(gains) / 2)


def test_a_longer_gradient_than_its_clipping_allows_shortens_the_step() -> None:
    assert clipped_size(max_norm=1.0, norm=4.0) == 0.25
    assert clipped_size(max_norm=None, norm=4.0) == clipped_size(max_norm=1.0, norm=0.5) == 1.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"patience": 0}, "patience: 0 is out of range; expected an integer >= 1"),
        ({"window": 0}, "window: 0 is out of range; expected an integer >= 1"),
        ({"confidence": 1.0}, r"confidence: 1\.0 is out of range; expected a number > 0 and < 1"),
        ({"min_iterations": -1}, "min_iterations: -1 is out of range"),
        ({"every_n_iterations": 0}, "every_n_iterations: 0 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=rf"^GainStopping\.{expected}"):
        GainStopping(**settings)


@pytest.mark.parametrize(
    ("influence", "expected"),
    [
        ({"target": AverageReward()}, "InfluenceFilter.target is AverageReward; expected Demonstrations"),
        ({"rule": "reward"}, "InfluenceFilter.rule reward reads no scores"),
        ({"score_at": "minibatch"}, "InfluenceFilter.score_at is minibatch"),
        ({"drop_when": "all"}, "InfluenceFilter.drop_when is all"),
        ({"scoring": ScoringSettings(normalise="length")}, "InfluenceFilter.scoring.normalise is length"),
        ({"scoring": ScoringSettings(health_groups=2)}, "InfluenceFilter.scoring.health_groups is 2"),
        ({"every_n_iterations": 2}, "every_n_iterations: 1 is no multiple of InfluenceFilter.every_n_iterations: 2"),
    ],
)
def test_a_filter_whose_scores_predict_nothing_is_refused(influence: dict[str, Any], expected: str) -> None:
    trainer = SimpleNamespace(callbacks=[InfluenceFilter(**influence)])
    with pytest.raises(UserError, match=expected):
        GainStopping().setup(trainer, tiny_module(), "fit")


def test_a_run_without_a_filter_or_with_a_foreign_module_is_refused() -> None:
    with pytest.raises(UserError, match="the run has 0 InfluenceFilter callbacks; expected one"):
        GainStopping().setup(SimpleNamespace(callbacks=[]), tiny_module(), "fit")
    with pytest.raises(UserError, match="Linear calls no on_update_end"):
        GainStopping().setup(SimpleNamespace(callbacks=[InfluenceFilter()]), torch.nn.Linear(1, 1), "fit")


def test_too_few_demonstrations_for_two_halves_are_refused(tmp_path: Path) -> None:
    module = tiny_module()
    callbacks = [InfluenceFilter(), GainStopping()]
    loop = tiny_loop(
        tmp_path / "run", module, callbacks=callbacks, data=tiny_data(num_influence_demonstrations=2), max_iterations=1
    )
    with pytest.raises(UserError, match="GainStopping: the demonstrations are 2 groups; expected at least 4"):
        loop.fit()
