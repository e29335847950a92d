"""A critic with an adapter of its own in training: the filter sees the policy alone, and a run resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from training_parts import TINY, prepared, same, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.modules import PPOModule
from ippo_lightning.modules.optimization import is_of_critic
from ippo_lightning.policies import CausalLMPolicy, LoraSettings

BATCH = {"prompts": ["1+2?", "9-4?"], "responses": ["1+2=3;#3", "9-4=5;#5"]}


def scores_of(module: PPOModule, episodes: Any, method: Any) -> torch.Tensor:
    direction = target_gradient(module, lambda owner, one: owner.validation_loss(one), [BATCH])
    return influence_scores(module, PPOModule.episode_losses, [episodes], direction, method=method)


def test_scores_are_those_of_the_policy_alone() -> None:
    modules = [tiny_module(policy=tiny_policy(lora=LoraSettings(r=2), value=value)) for value in ("head", "adapter")]
    for module in modules:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in module.policy.named_parameters():
            if "lora_B.default" in name:
                parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    episodes = prepared(modules[0])
    for method in ("hooks", "per_episode"):
        head, adapter = (scores_of(module, episodes, method) for module in modules)
        assert torch.equal(adapter, head)
        assert head.abs().max() > 0
    # the step of a difference depends on all parameters that train, and with it the rounding
    exact, found = head, scores_of(modules[1], episodes, "finite_difference")
    assert float((found - exact).norm()) < 0.02 * float(exact.norm())


def four_bit_policy(folder: Path) -> CausalLMPolicy:
    base = folder / "base"
    if not base.exists():
        wide = {**TINY, "hidden_size": 64, "intermediate_size": 64}
        tiny_policy(config=wide, value="none", reference="none").save_pretrained(base)
    settings: dict[str, Any] = {"quantization": "nf4", "tokenizer": arithmetic_tokenizer(), "value": "adapter"}
    return CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=2), **settings)


def test_a_filtered_run_on_four_bits_resumes_bit_for_bit_and_saves_the_policy_alone(tmp_path: Path) -> None:
    def run(folder: str, iterations: int, **changes: Any) -> PPOModule:
        module = tiny_module(policy=four_bit_policy(tmp_path), update={"num_epochs": 2})
        callbacks = [InfluenceFilter(min_keep=1)]
        loop = tiny_loop(tmp_path / folder, module, callbacks=callbacks, max_iterations=iterations, **changes)
        loop.fit()
        return module

    start = trainable(tiny_module(policy=four_bit_policy(tmp_path)))
    whole = run("whole", 2, save_model=True)
    run("broken", 1)
    resumed = run("broken", 2, resume=True)
    assert same(trainable(whole), trainable(resumed))
    moved = {name for name, value in trainable(whole).items() if not torch.equal(value, start[name])}
    assert {True, False} == {is_of_critic(name) for name in moved}
    saved = [path.name for path in (tmp_path / "whole" / "model").rglob("*")]
    assert "critic" not in saved
    config = json.loads(next((tmp_path / "whole" / "model").rglob("adapter_config.json")).read_text())
    assert config["r"] == 2
