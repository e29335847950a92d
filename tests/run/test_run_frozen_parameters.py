"""A callback that freezes in `setup` chooses what trains, for the run and for whoever reads its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from failing_modules import STEP, BreaksSFT, sft_loop, sft_module
from lightning import Callback
from training_parts import TINY, same, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.cli.export import export_run
from ippo_lightning.cli.replay import replay_run
from ippo_lightning.cli.settings import ExportSettings, ReplaySettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import FailedStepError
from ippo_lightning.storage.iteration_files import nonfinite_path


def freeze(module: Any, part: str = "mlp") -> None:
    for name, parameter in module.named_parameters():
        if part in name:
            parameter.requires_grad_(False)


class Freezes(Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        freeze(pl_module)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tiny_loop(tmp_path / "run", tiny_module(), callbacks=[Freezes()]).fit()
    return tmp_path / "run"


def trained(run: Path) -> dict[str, torch.Tensor]:
    module = tiny_module()
    tiny_loop(run, module, callbacks=[Freezes()], resume=True).fit()  # it has ended, so nothing is trained
    return trainable(module)


def test_its_checkpoint_can_be_evaluated(run: Path) -> None:
    module = tiny_module()
    tiny_loop(run, module).set_up_evaluation("last")
    assert same(trainable(module), trained(run))
    assert not any("mlp" in name for name in trained(run))


def test_its_model_can_be_exported(run: Path, tmp_path: Path) -> None:
    module = tiny_module()
    export_run(run, module, settings=ExportSettings(output=str(tmp_path / "export")))
    assert same(trainable(module), trained(run))


def test_other_frozen_parameters_are_refused_all_the_same(run: Path) -> None:
    module = tiny_module()
    with torch.no_grad():
        next(parameter for name, parameter in module.named_parameters() if "mlp" in name).add_(1.0)
    with pytest.raises(UserError, match="is of another model; its frozen parameters are not those of this one"):
        tiny_loop(run, module).set_up_evaluation("last")
    other = tiny_module(policy=tiny_policy(config={**TINY, "hidden_size": 32}))
    with pytest.raises(UserError, match="is of another model"):
        tiny_loop(run, other).set_up_evaluation("last")


def test_its_broken_step_can_be_replayed(tmp_path: Path) -> None:
    with pytest.raises(FailedStepError):
        sft_loop(tmp_path, sft_module(BreaksSFT), callbacks=[Freezes()]).fit()
    path = nonfinite_path(tmp_path, iteration=STEP, rank=0)
    said = replay_run(tmp_path, path, sft_module(), settings=ReplaySettings(device="cpu"))
    assert said.startswith(f"step {STEP} of ")


@pytest.mark.parametrize("wants", [True, False], ids=["unfreezes", "freezes"])
def test_a_change_during_the_run_is_one_line(wants: bool, tmp_path: Path) -> None:
    class Changes(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            freeze(pl_module, "mlp" if wants else "none of them")

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                for name, parameter in pl_module.named_parameters():
                    if "mlp" in name:
                        parameter.requires_grad_(wants)

    with pytest.raises(UserError, match=r"callbacks: policy\.\S+ was frozen or unfrozen after `setup`"):
        tiny_loop(tmp_path, tiny_module(), callbacks=[Changes()]).fit()
