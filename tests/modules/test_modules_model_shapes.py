"""The published sizes give the numbers of parameters that transformers and PEFT build."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ippo_lightning.modules.model_shapes import SHAPES, ModelShape

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "rho-1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "gemma-2-2b": 2_614_341_888,
    "qwen2.5-3b": 3_085_938_688,
    "phi-3-mini": 3_821_079_552,
    "llama-3-8b": 8_030_261_248,
}
"""From the pages of the models on the Hub."""


def built(shape: ModelShape) -> PreTrainedModel:
    """Return the model of transformers without any memory for its weights."""
    fields = shape.config()
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, **special)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_parameters_as_the_model_of_its_class(name: str) -> None:
    model = built(SHAPES[name])
    assert SHAPES[name].parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert SHAPES[name].parameters() == PUBLISHED.get(name, SHAPES[name].parameters())


@pytest.mark.parametrize("name", ["rho-1b", "qwen2.5-3b", "phi-3-mini", "gemma-3-1b"])
def test_an_adapter_has_as_many_parameters_as_that_of_peft(name: str) -> None:
    shape = replace(SHAPES[name], layers=2, vocabulary=64)
    settings = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device("meta"):
        adapted = get_peft_model(built(shape), settings)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert shape.adapter_parameters(3) == trained


@pytest.mark.parametrize("name", SHAPES)
def test_only_a_model_without_a_fused_kernel_keeps_its_attention_matrix(name: str) -> None:
    is_eager = built(replace(SHAPES[name], layers=1)).config._attn_implementation == "eager"
    assert SHAPES[name].stores_attention_matrix == is_eager
