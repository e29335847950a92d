"""Weights train in float32: in half precision most steps of an optimizer are rounded away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.modules.optimization import build_optimizer
from ippo_lightning.policies import LoraSettings
from tests.support.training_parts import tiny_loop, tiny_module, tiny_policy, trainable


@pytest.mark.parametrize(
    ("policy", "precision", "kind"),
    [
        ({"dtype": "bfloat16"}, "32-true", "bf16"),
        ({"dtype": "float16"}, "32-true", "16"),
        ({"dtype": "bfloat16", "value": "separate", "lora": LoraSettings(r=2)}, "32-true", "bf16"),
        ({}, "bf16-true", "bf16"),
        ({"lora": LoraSettings(r=2)}, "bf16-true", "bf16"),
    ],
)
def test_training_in_half_precision_is_refused_before_the_first_iteration(
    tmp_path: Path, policy: dict[str, Any], precision: Any, kind: str
) -> None:
    loop = tiny_loop(
        tmp_path / "run",
        tiny_module(policy=tiny_policy(**policy)),
        fabric=Fabric(accelerator="cpu", precision=precision),
    )
    remedy = rf"set policy.dtype: float32 and fabric.precision: {kind}-mixed \(not {kind}-true\)"
    with pytest.raises(UserError, match=rf"policy.dtype: .* would train in .*{remedy}") as caught:
        loop.fit()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_what_the_message_says_to_set_moves_every_weight_that_gets_a_gradient(tmp_path: Path) -> None:
    """At 1e-6, where 0.3 % of bfloat16 weights move."""
    module = tiny_module(optimizer=OptimizerSettings(learning_rate=1e-6))
    before = trainable(module.policy.model)
    tiny_loop(tmp_path / "run", module, fabric=Fabric(accelerator="cpu", precision="bf16-mixed")).fit()
    after = trainable(module.policy.model)
    layers = [name for name in before if "layers" in name and "norm" not in name]
    moved = sum(int((after[name] != before[name]).sum()) for name in layers)
    assert moved / sum(before[name].numel() for name in layers) > 0.9
    assert {weight.dtype for weight in after.values()} == {torch.float32}


def test_an_adapter_on_a_half_precision_base_trains(tmp_path: Path) -> None:
    module = tiny_module(policy=tiny_policy(dtype="bfloat16", lora=LoraSettings(r=2)))
    tiny_loop(tmp_path / "run", module).fit()
    assert module.iteration == 2


@pytest.mark.parametrize(("before", "after"), [(2e-3, None), (None, 2e-3)], ids=["one group", "two groups"])
def test_a_state_with_other_groups_of_the_same_parameters_continues(before: float | None, after: float | None) -> None:
    """As those of earlier versions, whose critic always has a group of its own."""
    module = tiny_module()
    trained = module.trained_parameters()
    old, new = (
        build_optimizer(trained, OptimizerSettings(learning_rate=1e-3, value_learning_rate=rate))
        for rate in (before, after)
    )
    for parameter in trained.values():
        parameter.grad = torch.randn_like(parameter)
    old.step()
    sizes = [len(group["params"]) for group in new.param_groups]
    new.load_state_dict(old.state_dict())
    assert [len(group["params"]) for group in new.param_groups] == sizes
    assert len(old.param_groups) != len(new.param_groups)
    for parameter in trained.values():
        assert torch.equal(old.state[parameter]["exp_avg"], new.state[parameter]["exp_avg"])
        assert torch.equal(old.state[parameter]["exp_avg"], 0.1 * parameter.grad)
