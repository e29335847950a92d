"""Supervised fine-tuning within the memory that there is: any cut of a batch gives the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import tiny_data, tiny_loop, tiny_policy, trainable

from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings, SFTModule

FLOAT32_STEP = 2e-5
"""Parameters after one Adam step of 1e-3, whose direction amplifies rounding of small gradients."""


def stepped(folder: Path, **changes: Any) -> SFTModule:
    """Return a module after one step on eight demonstrations."""
    module = SFTModule(policy=tiny_policy(), optimizer=OptimizerSettings(learning_rate=1e-3), **changes)
    loop = tiny_loop(folder, module, data=tiny_data(stage="sft"), max_iterations=1, overwrite=True)
    loop.fit()
    return module


def gap(first: SFTModule, second: SFTModule) -> float:
    """Return the largest difference of two modules' parameters."""
    pairs = zip(trainable(first).values(), trainable(second).values(), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


@pytest.mark.parametrize("fails_in", ["demonstration_loss", "backward_loss"])
def test_a_batch_that_does_not_fit_in_memory_starts_again_in_smaller_parts(
    fails_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_error: Exception
) -> None:
    whole = stepped(tmp_path / "whole")
    honest_loss, honest_backward, rows, limit = SFTModule.demonstration_loss, SFTModule.backward_loss, [], 2

    def loss(module: SFTModule, encoded: Any, denominator: float) -> torch.Tensor:
        rows.append(len(encoded.response_ids))
        if fails_in == "demonstration_loss" and rows[-1] > limit:
            raise memory_error
        return honest_loss(module, encoded, denominator)

    def backward(module: SFTModule, value: torch.Tensor) -> None:
        honest_backward(module, value)  # gradients of a backward that fails are already there
        if fails_in == "backward_loss" and rows[-1] > limit:
            raise memory_error

    monkeypatch.setattr(SFTModule, "demonstration_loss", loss)
    monkeypatch.setattr(SFTModule, "backward_loss", backward)
    with pytest.warns(UserWarning, match=r"model\.max_tokens: the device's memory is too small, continuing with"):
        halved = stepped(tmp_path / "halved")
    assert rows == [8, 4, 2, 2, 2, 2]
    assert gap(whole, halved) < FLOAT32_STEP
    resumed = SFTModule(policy=tiny_policy())
    resumed.load_progress_state(halved.progress_state())
    assert resumed.pass_size.tokens == halved.pass_size.tokens < 16384, "a resumed run makes the same passes"
    limit = 0
    with (
        pytest.raises(UserError, match=r"model\.max_tokens: one demonstration of \d+ tokens does not fit") as raised,
        pytest.warns(UserWarning, match="continuing with"),
    ):
        stepped(tmp_path / "none")
    assert "\n" not in str(raised.value)


def test_a_batch_is_cut_by_tokens_and_rows_stay_an_upper_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stepped(tmp_path / "whole")
    honest, sizes = SFTModule.demonstration_loss, []

    def counted(module: SFTModule, encoded: Any, denominator: float) -> torch.Tensor:
        sizes.append((len(encoded.response_ids), encoded.prompt_ids.shape[1] + encoded.response_ids.shape[1]))
        return honest(module, encoded, denominator)

    monkeypatch.setattr(SFTModule, "demonstration_loss", counted)
    small = stepped(tmp_path / "small", max_tokens=60)
    assert max(rows * width for rows, width in sizes) <= 60
    assert gap(whole, small) < FLOAT32_STEP
    sizes.clear()
    stepped(tmp_path / "rows", micro_batch_size=3)
    assert [rows for rows, _ in sizes] == [3, 3, 2]
    with pytest.raises(UserError, match=r"model\.max_tokens: 0 is out of range"):
        SFTModule(policy=tiny_policy(), max_tokens=0)
