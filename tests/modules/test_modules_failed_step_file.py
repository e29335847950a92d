"""The file of a failed step: few of them, and none that is damaged, foreign or code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_modules import STEP, BreaksSFT, failed, history, poison, sft_loop, sft_module
from training_parts import trainable

from ippo_lightning.errors import UserError
from ippo_lightning.modules import SFTModule, failed_step_file, read_failed_step, replay_failed_step
from ippo_lightning.modules.failed_step_file import MOST_SKIPPED
from ippo_lightning.policies import LoraSettings
from ippo_lightning.storage.iteration_files import nonfinite_files


def test_a_file_of_another_model_or_of_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    _, step = failed(sft_loop(tmp_path, sft_module(BreaksSFT)).fit, tmp_path)
    with pytest.raises(UserError, match=r"another model; the first parameter that differs is policy\.model\."):
        replay_failed_step(sft_module(lora=LoraSettings(r=2)), step)
    shortened = {**step, "calls": [[{"record": "EncodedResponses", "fields": {"prompt_ids": torch.zeros(1, 1)}}]]}
    with pytest.raises(UserError, match="the fields of EncodedResponses are wrong"):
        replay_failed_step(sft_module(), shortened)
    step["calls"][0][0]["record"] = "os.system"
    with pytest.raises(UserError, match=r"'os\.system' is unknown"):
        replay_failed_step(sft_module(), step)
    (tmp_path / "text.pt").write_text("no file of torch", encoding="utf-8")
    torch.save({"format": 1}, tmp_path / "other.pt")
    torch.save({**step, "rows": "all"}, tmp_path / "fields.pt")
    torch.save({**step, "calls": [7]}, tmp_path / "calls.pt")
    for name in ("missing.pt", "text.pt", "other.pt", "fields.pt", "calls.pt"):
        with pytest.raises(UserError, match=f"failed step: .*{name}"):
            read_failed_step(tmp_path / name)


def test_a_flipped_bit_in_a_file_is_found(tmp_path: Path) -> None:
    failed(sft_loop(tmp_path, sft_module(BreaksSFT)).fit, tmp_path)
    file = nonfinite_files(tmp_path, rank=0)[0]
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    # In the middle of the largest tensor, whatever stands there.
    place = largest.header_offset + 200 + largest.file_size // 2
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UserError, match="is damaged"):
        read_failed_step(file)


def test_a_run_that_skips_again_and_again_keeps_few_files(tmp_path: Path) -> None:
    class Always(BreaksSFT):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, float]:
            poison(self, 3e38)
            return SFTModule.training_step(self, batch, batch_idx)

    sft_loop(tmp_path, sft_module(Always, on_nonfinite="skip"), max_iterations=6).fit()
    assert len([row for row in history(tmp_path) if row["sft/nonfinite_demonstrations"]]) > MOST_SKIPPED
    assert len(nonfinite_files(tmp_path, rank=0)) == MOST_SKIPPED


def test_the_parameters_of_a_large_model_stay_in_the_checkpoint(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failed_step_file, "MOST_PARAMETER_BYTES", 100)
        module = sft_module(BreaksSFT)
        _, step = failed(sft_loop(tmp_path, module).fit, tmp_path)
    assert step["parameters"] == {}
    # The checkpoint of the last good state has them.
    state = torch.load(tmp_path / "checkpoints" / f"iteration_{STEP:07d}.ckpt", weights_only=True)
    assert state["parameters"].keys() == trainable(module).keys()
