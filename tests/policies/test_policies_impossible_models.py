"""Sizes that contradict each other are found when a model is built; a possible model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.policies.impossible_models import check_computes

WRONG: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "layers": {"num_hidden_layers": -1},
        "heads": {"num_attention_heads": 3},
        "key heads": {"num_key_value_heads": 3},
        "head": {"head_dim": 3},
        "width": {"hidden_size": -8},
        "inner width": {"intermediate_size": -1},
    },
    "gpt2": {
        "layers": {"num_hidden_layers": -1},
        "heads": {"num_attention_heads": 5},
        "context": {"max_position_embeddings": -1},
        "width": {"hidden_size": 0},
    },
    "qwen2": {"layers": {"num_hidden_layers": -2}, "key heads": {"num_key_value_heads": 3}},
    "gemma2": {"layers": {"num_hidden_layers": -1}, "head": {"head_dim": 5}, "pattern": {"layer_types": ["x", "y"]}},
}
CASES = [(family, name) for family, cases in WRONG.items() for name in cases]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_an_impossible_model_is_one_line(
    family: str, name: str, configs: dict[str, dict[str, Any]], tokenizer: Any
) -> None:
    config = {**configs[family], **WRONG[family][name]}
    with pytest.raises(UserError) as error:
        # without the check of a policy, which would find some of them
        CausalLMPolicy(config=config, tokenizer=tokenizer, value="none", reference="none", self_check=False)
    assert str(error.value).startswith("policy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2"])
def test_the_trial_leaves_no_trace(family: str, configs: dict[str, dict[str, Any]], tokenizer: Any) -> None:
    policy = CausalLMPolicy(
        config=configs[family], tokenizer=tokenizer, value="none", reference="none", self_check=False
    )
    model = policy.language_model.train()
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    random = torch.get_rng_state()
    check_computes(model, configs[family])
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in [*model.named_parameters(), *model.named_buffers()])
    assert all(parameter.grad is None for parameter in model.parameters())
