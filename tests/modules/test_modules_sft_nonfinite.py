"""SFT with a demonstration whose loss or gradient is not finite: it stops, or goes on without the row."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_modules import STEP, TOKEN, BreaksSFT, history, poison, sft_loop, sft_module
from training_parts import TINY, same, trainable

from ippo_lightning.errors import UserError
from ippo_lightning.modules import FailedStepError, SFTModule, failed_steps
from ippo_lightning.storage.iteration_files import nonfinite_files


class WithoutRows(SFTModule):
    """The oracle: rows with the token are not in the batch of iteration STEP."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, float]:
        if self.iteration == STEP:
            poison(self, 3e38)
            texts = zip(batch["prompts"], batch["responses"], strict=True)
            kept = [row for row, both in enumerate(texts) if TOKEN not in "".join(both)]
            assert 0 < len(kept) < len(batch["prompts"])
            batch = {name: [column[row] for row in kept] for name, column in batch.items()}
        return super().training_step(batch, batch_idx)


def test_sft_that_skips_trains_on_the_other_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    modules = [sft_module(kind, on_nonfinite="skip") for kind in (BreaksSFT, WithoutRows)]
    with caplog.at_level(logging.WARNING):
        for name, module in zip(("skips", "oracle"), modules, strict=True):
            sft_loop(tmp_path / name, module, max_iterations=1 + STEP).fit()
    assert re.search(r"gradient of demonstration \d+ \(prompt '.*'\).*; left out of this step", caplog.text)
    skips, oracle = (history(tmp_path / name) for name in ("skips", "oracle"))
    broken = [texts for texts in modules[0].texts if TOKEN in "".join(texts)]
    assert [row["sft/nonfinite_demonstrations"] for row in skips] == [0, 0, len(broken)]
    assert skips[-1]["progress/tokens_trained"] == oracle[-1]["progress/tokens_trained"]
    pairs = zip(trainable(modules[0]).values(), trainable(modules[1]).values(), strict=True)
    # The passes have other rows, so the sums round otherwise; Adam's first steps are of the size 1e-3.
    assert max(float((one - other).abs().max()) for one, other in pairs) < 1e-5
    assert nonfinite_files(tmp_path / "skips", rank=0)


def test_a_file_that_was_written_changes_no_random_number(tmp_path: Path) -> None:
    """With room for a file and without, the run that skips ends alike, dropout included."""
    config = {**TINY, "attention_dropout": 0.5}
    ends = []
    for name, most in (("file", 3), ("none", 0)):
        module = sft_module(
            BreaksSFT, config=config, keep_dropout=True, attn_implementation="eager", on_nonfinite="skip"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(failed_steps, "MOST_SKIPPED", most)
            sft_loop(tmp_path / name, module).fit()
        assert bool(nonfinite_files(tmp_path / name, rank=0)) is bool(most)
        ends.append(trainable(module))
    assert same(*ends)


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_a_batch_without_a_good_row_stops_the_run(rule: str, tmp_path: Path) -> None:
    class Breaks(SFTModule):
        def demonstration_loss(self, encoded: Any, denominator: float) -> torch.Tensor:
            return super().demonstration_loss(encoded, denominator) * math.nan

    with pytest.raises(FailedStepError, match=r"loss of demonstration 0 \(prompt '.*'\) and 5 more;"):
        sft_loop(tmp_path, sft_module(Breaks, on_nonfinite=rule)).fit()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"on_nonfinite": "ignore"}, "model.on_nonfinite: 'ignore' is unknown; expected one of stop, skip"),
        ({"max_grad_norm": 0.0}, "model.max_grad_norm: 0.0 is out of range; expected a number > 0"),
    ],
)
def test_sft_refuses_an_unknown_rule(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        sft_module(**settings)
