"""A run ends when too few episodes are kept for several iterations in a row."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_parts import tiny_loop, tiny_module

from ippo_lightning.callbacks import InfluenceFilter, IntrinsicStopping
from ippo_lightning.errors import UserError


def test_stopping_waits_for_its_patience_and_resumes_its_count_from_a_checkpoint() -> None:
    stopping, trainer = IntrinsicStopping(threshold=0.5, patience=2), SimpleNamespace(should_stop=False)
    decisions = []
    for iteration, kept_fraction in enumerate([0.4, 0.6, 0.4, 0.4]):
        if iteration == 3:
            resumed = IntrinsicStopping(threshold=0.5, patience=2)
            resumed.load_state_dict(stopping.state_dict())
            stopping = resumed
        stopping.on_update_end(trainer, None, SimpleNamespace(kept_fraction=kept_fraction, iteration=iteration))
        decisions.append(trainer.should_stop)
    assert decisions == [False, False, False, True]


@pytest.mark.parametrize("score_at", ["rollout_end", "minibatch", "layer"])
def test_stopping_ends_a_real_run(score_at: Any, tmp_path: Path) -> None:
    module = tiny_module()
    stopping = IntrinsicStopping(threshold=1.0, patience=1, min_iterations=2)
    influence = InfluenceFilter(threshold=1e9, power=0.0, score_at=score_at)
    tiny_loop(tmp_path / "run", module, callbacks=[influence, stopping], max_iterations=5).fit()
    assert module.iteration == 2


def test_a_stop_that_another_callback_asked_for_stays() -> None:
    trainer = SimpleNamespace(should_stop=True)
    IntrinsicStopping(threshold=0.5).on_update_end(trainer, None, SimpleNamespace(kept_fraction=0.9, iteration=0))
    assert trainer.should_stop


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"threshold": 0.0}, r"threshold: 0\.0 is out of range; expected a number > 0 and <= 1"),
        ({"threshold": 1.5}, r"threshold: 1\.5 is out of range; expected a number > 0 and <= 1"),
        ({"threshold": float("nan")}, r"threshold: nan is out of range"),
        ({"patience": 0}, "patience: 0 is out of range; expected an integer >= 1"),
        ({"min_iterations": -1}, "min_iterations: -1 is out of range; expected an integer >= 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings: dict[str, float], expected: str) -> None:
    with pytest.raises(UserError, match=rf"^IntrinsicStopping\.{expected}"):
        IntrinsicStopping(**settings)
