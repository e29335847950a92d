"""Modules whose steps are not finite from one iteration on, and runs of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.modules import OptimizerSettings, PPOModule, SFTModule, read_failed_step
from ippo_lightning.policies import SamplingSettings

STEP = 2
"""The first iteration that fails."""


TOKEN = "9"


def poison(module: PPOModule | SFTModule, value: float) -> None:
    """Set the embedding of one token: 3e38 leaves the loss finite and makes the gradient NaN, infinity breaks both.

    The square of 3e38 is infinite, so a norm divides by infinity: the layer sees 0, and its gradient is 0 / 0.
    """
    with torch.no_grad():
        number = module.policy.tokenizer.convert_tokens_to_ids(TOKEN)
        module.policy.language_model.get_input_embeddings().weight[number] = value


class BreaksSFT(SFTModule):
    """Rows with one token break from iteration STEP on."""

    value = 3e38

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, float]:
        if self.iteration == STEP:
            self.texts = list(zip(batch["prompts"], batch["responses"], strict=True))
            poison(self, self.value)
            self.before = trainable(self)
        return super().training_step(batch, batch_idx)


class BreaksPPO(PPOModule):
    """Rows with one token break in the first pass of iteration STEP, after sampling and scoring."""

    def loss_through_wrapper(self, minibatch: Any) -> Any:
        if self.iteration == STEP:
            poison(self, 3e38)
            self.before = trainable(self)
        return super().loss_through_wrapper(minibatch)


def sft_module(kind: type[SFTModule] = SFTModule, **changes: Any) -> Any:
    own = {name: changes.pop(name) for name in ("on_nonfinite", "max_grad_norm") if name in changes}
    policy = tiny_policy(**{"value": "none", "reference": "none", "self_check": False, **changes})
    sampling = SamplingSettings(num_responses=1, max_new_tokens=8)
    optimizer = OptimizerSettings(learning_rate=1e-3)
    return kind(policy=policy, evaluation=sampling, optimizer=optimizer, micro_batch_size=3, **own)


def ppo_module(kind: type[PPOModule] = PPOModule, **changes: Any) -> Any:
    plain = tiny_module(policy=tiny_policy(**changes))
    parts = {"grader": plain.grader, "sampling": plain.sampling, "optimizer": plain.optimizer_settings}
    return kind(policy=plain.policy, reward=plain.reward, update=plain.update_settings, **parts)


def sft_loop(folder: Path, module: SFTModule, **changes: Any) -> Any:
    data = tiny_data(stage="sft", batch_size=8, num_demonstrations=32)
    return tiny_loop(folder, module, data=data, **{"max_iterations": 4, **changes})


def failed(run: Any, folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the message and the file that it names."""
    with pytest.raises(FloatingPointError) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"step {STEP}: ")
    named = re.search(r"see (\S+)$", message)
    assert named is not None, message
    assert Path(named[1]) == folder / "nonfinite" / f"step_{STEP:07d}.pt"
    return message, read_failed_step(named[1])


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
