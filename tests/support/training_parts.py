"""A tiny policy that trains in milliseconds, and what goes round it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from ippo_lightning.data import TextDataModule, arithmetic_tokenizer
from ippo_lightning.distributed.dtensor import full_tensor
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.modules import OptimizerSettings, PPOModule
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.records import TextEpisodes
from ippo_lightning.run.fabric_loop import FabricLoop, LoopSettings
from ippo_lightning.tasks import ArithmeticTask, grade_arithmetic

TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def length_reward(prompts: Any, responses: Any, examples: Any) -> list[float]:
    """A reward that an untrained model can earn: more characters, more reward, and noise by prompt."""
    return [0.1 * len(response) + 0.01 * (len(prompt) % 3) for prompt, response in zip(prompts, responses, strict=True)]


class RecordedReward:
    """A reward that remembers how many responses each call had."""

    def __init__(self, reward: Callable[..., list[float]] = length_reward) -> None:
        self.reward = reward
        self.calls: list[int] = []

    def __call__(self, prompts: Any, responses: Any, examples: Any) -> list[float]:
        self.calls.append(len(prompts))
        return self.reward(prompts, responses, examples)


class BrokenFirst(RecordedReward):
    """One that is NaN for the first response of each call, too."""

    def __call__(self, prompts: Any, responses: Any, examples: Any) -> list[float]:
        return [math.nan, *super().__call__(prompts, responses, examples)[1:]]


def tiny_policy(**changes: Any) -> CausalLMPolicy:
    settings: dict[str, Any] = {"config": dict(TINY), "tokenizer": arithmetic_tokenizer(), "seed": 3}
    return CausalLMPolicy(**{**settings, **changes})


def tiny_module(
    *, policy: CausalLMPolicy | None = None, update: dict[str, Any] | None = None, **changes: Any
) -> PPOModule:
    settings: dict[str, Any] = {
        "reward": length_reward,
        "grader": grade_arithmetic,
        "sampling": SamplingSettings(num_responses=2, max_new_tokens=8),
        "optimizer": OptimizerSettings(learning_rate=1e-3),
    }
    numbers = {"num_epochs": 1, "minibatch_size": 8, "micro_batch_size": 8, **(update or {})}
    return PPOModule(policy=policy or tiny_policy(), update=UpdateSettings(**numbers), **{**settings, **changes})


def tiny_data(*, batch_size: int = 8, **changes: Any) -> TextDataModule:
    own = {name: changes.pop(name) for name in ("stage", "evaluation_batch_size") if name in changes}
    sizes = {"num_train": 32, "num_validation": 4, "num_test": 4, "num_influence_demonstrations": 6}
    return TextDataModule(ArithmeticTask(**{**sizes, **changes}), batch_size=batch_size, **own)


def tiny_loop(folder: Path, module: PPOModule, **changes: Any) -> FabricLoop:
    callbacks = changes.pop("callbacks", [])
    fabric = changes.pop("fabric", None) or Fabric(accelerator="cpu", devices=1)
    settings = {
        "run_dir": str(folder),
        "max_iterations": 2,
        "evaluate_every_n_iterations": 0,
        "evaluate_first": False,
        "test_at_end": False,
        "save_model": False,
        "progress_bar": False,
        "checkpoint_every_n_iterations": 1,
    }
    seed = changes.pop("seed", 5)
    data = changes.pop("data", None) or tiny_data()
    return FabricLoop(
        fabric, module, data, callbacks=callbacks, settings=LoopSettings(**{**settings, **changes}), seed=seed
    )


def prepared(module: PPOModule, *, num_prompts: int = 8) -> TextEpisodes:
    """Roll out until the responses differ in length, and go as far as the advantages."""
    data = tiny_data(batch_size=num_prompts)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    episodes = module.rollout(module.plan_rollout(batch))
    while len(episodes.lengths.unique()) < 2:
        episodes = module.rollout(module.plan_rollout(batch))
    return module.compute_advantages(module.compute_rewards(episodes))


def trainable(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: full_tensor(p.detach()).clone() for name, p in module.named_parameters() if p.requires_grad}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
