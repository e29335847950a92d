"""A step that is not finite: the file that repeats it, and where the NaN begins."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_modules import STEP, TOKEN, BreaksPPO, BreaksSFT, failed, ppo_module, sft_loop, sft_module
from lightning import Trainer
from lightning.fabric import Fabric
from training_parts import TINY, same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.modules import SFTModule, read_failed_step, replay_failed_step
from ippo_lightning.modules.failed_steps import StepTrace, diagnose
from ippo_lightning.policies import LoraSettings
from ippo_lightning.storage.iteration_files import nonfinite_files

# a loss of tokens in bfloat16, whose numbers have 8 bits
ROUNDING = 0.05


@pytest.mark.parametrize("value", [3e38, math.inf])
@pytest.mark.parametrize("adapter", [None, LoraSettings(r=2)], ids=["full", "lora"])
def test_a_failed_step_of_sft_names_row_parameter_and_file(
    value: float, adapter: LoraSettings | None, tmp_path: Path
) -> None:
    module = sft_module(BreaksSFT, lora=adapter)
    module.value = value
    message, step = failed(sft_loop(tmp_path, module).fit, tmp_path)
    # By plain search: which of the eight rows contain the token, and in which pass of three rows they are.
    rows = [row for row, texts in enumerate(module.texts) if TOKEN in "".join(texts)]
    number = rows[0] // 3
    assert step["failed_pass"] == number
    quantity = "gradient" if value == 3e38 else "loss"
    assert step["rows"] == {row % 3: quantity for row in rows if row // 3 == number}
    assert f"NaN or infinity in {quantity} of demonstration {rows[0]} (prompt {module.texts[rows[0]][0]!r})" in message
    # An infinite weight is what broke the step, so it is named, and not the gradients behind it.
    is_weight = math.isinf(value)
    assert (f"row {rows[0] % 3} ({quantity})" in message) is not is_weight
    assert ("before the step, NaN or infinity is in policy." in message) is is_weight
    assert bool(step["weights"]) is is_weight
    of_pass = module.texts[number * 3 : number * 3 + 3]
    assert [prompt for prompt, _ in step["texts"]] == [prompt for prompt, _ in of_pass]
    assert step["parameter"] in module.trained_parameters()
    assert same(step["parameters"], module.before)
    assert same(trainable(module), module.before)
    finite = [math.isfinite(loss) for loss in step["row_losses"]]
    assert len(finite) == len(step["texts"])
    assert [row for row, is_finite in enumerate(finite) if not is_finite] == [
        row for row, quantity in step["rows"].items() if quantity == "loss"
    ]


@pytest.mark.parametrize("callbacks", [[], [InfluenceFilter()]], ids=["ppo", "ippo"])
@pytest.mark.filterwarnings("ignore:InfluenceFilter")
def test_a_failed_step_of_ppo_repeats_in_a_fresh_module(callbacks: list[Any], tmp_path: Path) -> None:
    module = ppo_module(BreaksPPO)
    loop = tiny_loop(tmp_path, module, callbacks=callbacks, max_iterations=4)
    message, step = failed(loop.fit, tmp_path)
    assert re.search(r"gradient of episode \d+ \(prompt", message)
    # The last token of a response is sampled and never read; each token is a character.
    broken = {row for row, texts in enumerate(step["texts"]) if TOKEN in "".join(texts).removesuffix("<eos>")[:-1]}
    assert set(step["rows"]) <= broken
    assert step["rows"]
    fresh = ppo_module(seed=8)
    found = replay_failed_step(fresh, step)
    assert (dict(found.rows), found.failed_pass, found.parameter) == (
        step["rows"],
        step["failed_pass"],
        step["parameter"],
    )
    assert same(trainable(fresh), module.before)
    assert all(parameter.grad is None for parameter in fresh.parameters())


def test_the_first_gradient_to_break_is_the_first_that_the_backward_meets() -> None:
    """NaN enters the backward between layers 1 and 0: behind it, the last matrix of layer 0 comes first."""
    module = sft_module(config={**TINY, "num_hidden_layers": 2})

    def breaks(_layer: object, _inputs: object, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient * math.nan)

    module.policy.language_model.model.layers[0].register_forward_hook(breaks)
    encoded = module.policy.text.encode_demonstrations(["1+2?"], ["1+2=3;#3"], max_length=64)
    found = diagnose(module, [(encoded, 1.0)], None)
    assert found.parameter == "policy.model.model.layers.0.mlp.down_proj.weight"
    assert found.rows == {0: "gradient"}


def test_dropout_draws_in_the_repetition_what_it_drew_in_the_step(tmp_path: Path) -> None:
    losses: list[float] = []

    class Notes(BreaksSFT):
        value = math.inf

        def demonstration_loss(self, encoded: Any, denominator: float) -> torch.Tensor:
            loss = super().demonstration_loss(encoded, denominator)
            losses.append(float(loss.detach()))
            return loss

    config = {**TINY, "attention_dropout": 0.5}
    module = sft_module(Notes, config=config, keep_dropout=True, attn_implementation="eager")
    _, step = failed(sft_loop(tmp_path, module).fit, tmp_path)
    number = step["failed_pass"]
    fresh = sft_module(config=config, keep_dropout=True, attn_implementation="eager")
    found = replay_failed_step(fresh, step)
    first = STEP * 3  # three passes per step
    assert list(found.losses)[:number] == losses[first : first + number]


def test_each_row_may_be_finite_where_their_sum_is_not(tmp_path: Path) -> None:
    class Sums(SFTModule):
        """Two passes with finite gradients of 3e38 each, which add up to infinity."""

        def demonstration_loss(self, encoded: Any, denominator: float) -> torch.Tensor:
            loss = super().demonstration_loss(encoded, denominator)
            bias = self.policy.language_model.model.norm.weight[:1].sum()
            return loss + bias * 3e38 if self.iteration == STEP else loss

    message, step = failed(sft_loop(tmp_path, sft_module(Sums)).fit, tmp_path)
    assert "each pass of the step is finite when it is repeated" in message
    assert step["failed_pass"] is None
    assert len(step["calls"]) == 3


def test_trainer_writes_the_file_too(tmp_path: Path) -> None:
    module = sft_module(BreaksSFT)
    options = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **options)
    data = tiny_data(stage="sft", batch_size=8, num_demonstrations=32)
    _, step = failed(lambda: trainer.fit(module, datamodule=data), tmp_path)
    assert replay_failed_step(sft_module(), step).rows == step["rows"]


def test_bf16_mixed_is_repeated_in_bf16_or_in_the_precision_of_the_weights(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    _, step = failed(sft_loop(tmp_path, sft_module(BreaksSFT), fabric=fabric).fit, tmp_path)
    assert step["autocast"] == "bfloat16"
    halves = replay_failed_step(sft_module(), step).losses
    step["autocast"] = None
    precise = replay_failed_step(sft_module(), step).losses
    assert halves != precise
    assert halves == pytest.approx(precise, rel=ROUNDING)


def test_a_row_that_ppo_leaves_out_leaves_a_file_that_repeats_its_step(tmp_path: Path) -> None:
    module = ppo_module(BreaksPPO)
    module.update_settings = replace(module.update_settings, on_nonfinite="skip")
    tiny_loop(tmp_path, module, max_iterations=STEP + 1).fit()
    assert [path.name for path in nonfinite_files(tmp_path, rank=0)] == [f"step_{STEP:07d}.pt"]
    step = read_failed_step(nonfinite_files(tmp_path, rank=0)[0])
    assert replay_failed_step(ppo_module(), step).rows == step["rows"]
    assert module.step_trace == StepTrace()


def test_a_reward_that_is_not_finite_is_no_failed_step(tmp_path: Path) -> None:
    nothing: Any = lambda prompts, responses, examples: [math.nan] * len(prompts)  # noqa: E731
    module = tiny_module(update={"on_nonfinite": "skip"}, reward=nothing)
    with pytest.raises(FloatingPointError, match=r"outcome_rewards of episode 0 \(prompt '[^']*'\)"):
        tiny_loop(tmp_path, module).fit()
    assert not nonfinite_files(tmp_path, rank=0)


def test_a_new_run_in_the_folder_removes_the_file_of_the_old_one(tmp_path: Path) -> None:
    failed(sft_loop(tmp_path, sft_module(BreaksSFT)).fit, tmp_path)
    sft_loop(tmp_path, sft_module(), overwrite=True).fit()
    assert not nonfinite_files(tmp_path, rank=0)
