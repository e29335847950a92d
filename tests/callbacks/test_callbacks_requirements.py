"""A callback that acts on rollouts refuses a module that makes none, before the first iteration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from training_parts import tiny_data, tiny_loop, tiny_policy

from ippo_lightning import callbacks
from ippo_lightning.callbacks import (
    CompletionsTable,
    EpisodeFrames,
    EpisodeLog,
    GainStopping,
    InfluenceFilter,
    IntrinsicStopping,
    PromptSelection,
)
from ippo_lightning.errors import UserError
from ippo_lightning.modules import SFTModule
from ippo_lightning.selection import Random, RandomPrompts

NO_ROLLOUTS = "acts on rollouts, and SFTModule makes none; leave it out of supervised fine-tuning"
REFUSED: dict[str, tuple[Callable[[], Callback], str]] = {
    "CompletionsTable": (CompletionsTable, NO_ROLLOUTS),
    "EpisodeFrames": (EpisodeFrames, "SFTModule has none"),
    "EpisodeLog": (EpisodeLog, NO_ROLLOUTS),
    "EpisodeLog with buffers": (lambda: EpisodeLog(keep_buffers=True), NO_ROLLOUTS),
    "GainStopping": (GainStopping, "InfluenceFilter"),
    "InfluenceFilter": (InfluenceFilter, NO_ROLLOUTS),
    "InfluenceFilter without scores": (lambda: InfluenceFilter(rule=Random(fraction=0.5)), NO_ROLLOUTS),
    "IntrinsicStopping": (IntrinsicStopping, NO_ROLLOUTS),
    "PromptSelection": (lambda: PromptSelection(RandomPrompts()), "SFTModule samples nothing"),
}


def supervised() -> Any:
    return SFTModule(policy=tiny_policy(value="none", reference="none"))


@pytest.mark.parametrize("name", REFUSED)
def test_supervised_fine_tuning_refuses_what_acts_on_rollouts(name: str, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    module = supervised()
    with pytest.raises(UserError, match=words):
        tiny_loop(tmp_path / "run", module, callbacks=[make()], data=tiny_data(stage="sft")).fit()
    assert module.iteration == 0


def test_each_callback_of_the_project_is_tried_here() -> None:
    found = {name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), Callback)}
    assert found == {name.split()[0] for name in REFUSED}


def test_a_model_that_is_only_evaluated_may_keep_the_callbacks_of_its_training() -> None:
    for make in (CompletionsTable, EpisodeLog, IntrinsicStopping):
        make().setup(None, supervised(), "validate")


def test_a_project_may_give_the_filter_a_buffer_of_its_own() -> None:
    influence = InfluenceFilter(rule=Random(fraction=0.5), buffer=lambda module, batch: None)
    influence.setup(None, supervised(), "fit")


def test_a_subclass_that_samples_for_itself_says_so() -> None:
    class Sampling(SFTModule):
        makes_rollouts = True

    module = Sampling(policy=tiny_policy(value="none", reference="none"))
    for make in (CompletionsTable, EpisodeLog, IntrinsicStopping):
        make().setup(None, module, "fit")
