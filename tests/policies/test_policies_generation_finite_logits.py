"""A model whose numbers broke is named by its weights, not by an error of the draw, and greedy draws too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from training_parts import tiny_loop, tiny_module, tiny_policy

from ippo_lightning.policies import LoraSettings, SamplingSettings, encode_prompts
from ippo_lightning.policies.generation.finite_logits import FiniteLogits

SETTINGS: dict[str, dict[str, Any]] = {
    "random": {},
    "greedy": {"greedy": True},
    "half precision": {"dtype": "bfloat16"},
    "continuous": {"sampler": "continuous"},
}


def broken_policy(value: float, **changes: Any) -> Any:
    """The last norm before the head gets the value in one place."""
    policy = tiny_policy(self_check=False, **changes)
    with torch.no_grad():
        policy.language_model.get_output_embeddings().weight[4, 5] = value
    return policy


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_weight_that_is_nan_is_named_before_it_is_sampled_from(settings: dict[str, Any]) -> None:
    policy = broken_policy(math.nan)
    prompts = encode_prompts(policy.tokenizer, ["1+2?"], max_length=16)
    with pytest.raises(FloatingPointError, match=r"weights: model\.lm_head\.weight contains NaN before sampling"):
        policy.sample(*prompts, SamplingSettings(num_responses=2, max_new_tokens=4, **settings))


@pytest.mark.parametrize("settings", [SETTINGS["random"], SETTINGS["greedy"], SETTINGS["half precision"]])
@pytest.mark.parametrize(
    ("value", "adapter", "reason"),
    [
        (3e38, None, "the weights are finite, the largest is 3e+38 in "),
        # A frozen weight is not looked at before sampling, because training cannot break it.
        (math.inf, LoraSettings(r=2), "lm_head.weight contains infinity; it is frozen"),
    ],
)
def test_logits_that_are_not_finite_are_named(
    settings: dict[str, Any], value: float, adapter: LoraSettings | None, reason: str
) -> None:
    policy = broken_policy(value, lora=adapter)
    with torch.no_grad():  # far from 0, so that the product overflows
        policy.language_model.model.norm.weight[5] = 1e3
    prompts = encode_prompts(policy.tokenizer, ["1+2?"], max_length=16)
    torch.manual_seed(0)
    with pytest.raises(
        FloatingPointError, match=r"sampling: the logits of [12] of 2 responses are NaN or inf"
    ) as caught:
        policy.sample(*prompts, SamplingSettings(num_responses=2, max_new_tokens=4, **settings))
    assert reason in str(caught.value)
    assert "probability tensor" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_with_broken_logits_is_noted_and_the_others_stay_bit_for_bit(value: float) -> None:
    scores = torch.randn(3, 5)
    scores[0, 1] = -math.inf  # a token that may not be drawn is no fault
    scores[2, 4] = value
    guard = FiniteLogits()
    result = guard(torch.zeros(3, 1), scores)
    assert torch.equal(result[:2], scores[:2])
    assert result[2].tolist() == [0.0] * 5
    assert guard.num_broken() == 1
    # A row that was broken once stays noted.
    guard(torch.zeros(3, 1), torch.randn(3, 5))
    assert guard.num_broken() == 1


def test_an_evaluation_names_weights_that_are_nan(tmp_path: Any) -> None:
    module = tiny_module(policy=broken_policy(math.nan))
    with pytest.raises(FloatingPointError, match=r"weights: model\.lm_head\.weight contains NaN before sampling"):
        tiny_loop(tmp_path, module, evaluate_first=True).fit()
