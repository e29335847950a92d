"""Where Fabric would only pass calls on to torch, the module calls torch, with the same bits and the same hooks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Fabric
from lightning.fabric.strategies import SingleDeviceStrategy

from ippo_lightning.data import ControlDataModule
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.modules import ControlPPOModule
from ippo_lightning.rollouts import EnvironmentSettings
from ippo_lightning.run.fabric_loop import FabricLoop
from ippo_lightning.run.settings import LoopSettings

NUM_STEPS = 2 * 2  # epochs, and minibatches of each
HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")


class OwnStrategy(SingleDeviceStrategy):
    """Another class, which may do more than pass calls on."""


class CountsHooks(Callback):
    """Counts the hooks of optimizer steps."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name not in HOOKS:
            return super().__getattribute__(name)
        return lambda *arguments: self.counts.update([name])


@pytest.fixture
def clipped_by_fabric(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the limits that `Fabric.clip_gradients` was called with."""
    limits: list[float] = []
    clip = Fabric.clip_gradients

    def counted(self: Fabric, *arguments: Any, **settings: Any) -> Any:
        limits.append(settings["max_norm"])
        return clip(self, *arguments, **settings)

    monkeypatch.setattr(Fabric, "clip_gradients", counted)
    return limits


def fitted(folder: Path, fabric: Fabric) -> tuple[dict[str, torch.Tensor], Counter[str]]:
    torch.manual_seed(0)
    module = ControlPPOModule(
        environment=EnvironmentSettings(id="CartPole-v1"),
        num_steps=32,
        update=UpdateSettings(num_epochs=2, minibatch_size=16, max_grad_norm=0.1),
    )
    counts = CountsHooks()
    settings = LoopSettings(
        run_dir=str(folder), max_iterations=1, progress_bar=False, evaluate_first=False, test_at_end=False
    )
    data = ControlDataModule(evaluation_episodes=1)
    FabricLoop(fabric, module, data, callbacks=[counts], settings=settings, seed=1).fit()
    return {name: weight.clone() for name, weight in module.policy.state_dict().items()}, counts.counts


def test_both_ways_give_the_same_bits_and_call_the_same_hooks(tmp_path: Path, clipped_by_fabric: list[float]) -> None:
    plain, hooks = fitted(tmp_path / "plain", Fabric(accelerator="cpu", devices=1))
    assert clipped_by_fabric == []
    wrapped, same_hooks = fitted(tmp_path / "wrapped", Fabric(accelerator="cpu", strategy=OwnStrategy("cpu")))
    assert clipped_by_fabric == [0.1] * NUM_STEPS
    assert all(torch.equal(weight, wrapped[name]) for name, weight in plain.items())
    assert hooks == same_hooks == dict.fromkeys(HOOKS, NUM_STEPS)


def test_another_precision_goes_through_fabric(tmp_path: Path, clipped_by_fabric: list[float]) -> None:
    fitted(tmp_path / "mixed", Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    assert clipped_by_fabric == [0.1] * NUM_STEPS
