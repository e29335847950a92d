"""What a pass is said to keep is what autograd stores."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ippo_lightning.modules.memory_passes import (
    Trained,
    Weights,
    inference_pass,
    sampling_pass,
    stored_per_token,
    training_pass,
)
from ippo_lightning.modules.model_shapes import ModelShape

ROWS, WIDTH = 2, 48
LEFT_OUT = 0.05
"""A row of numbers per norm is left out of the sums, and views that share memory in Phi-3 and Qwen3."""
SMALL = ModelShape(
    source="", model_type="llama", layers=1, hidden=96, intermediate=320, heads=8, kv_heads=2, head_dim=16,
    vocabulary=64, tied=True,
)  # fmt: skip
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {"kv_heads": 8, "head_dim": 12},
}


def stored_bytes(shape: ModelShape, trained: Trained) -> int:
    """Return the bytes of all tensors that autograd stores in a forward, parameters left out."""
    fields = shape.config()
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, **special)
    dtype = torch.bfloat16 if trained == "lora" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if trained == "lora":
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = torch.randint(3, shape.vocabulary, (ROWS, WIDTH))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padding, so that attention has a mask as in training
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    stored: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if tensor.numel() and place not in parameters:
            stored[place] = tensor
        return tensor

    mixed = torch.autocast("cpu", torch.bfloat16) if trained == "full_bf16" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        model.train()(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in stored.values())


@pytest.mark.parametrize("trained", ["full", "full_bf16", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_what_autograd_stores(family: str, trained: Trained) -> None:
    shape = replace(SMALL, model_type=family, **FAMILIES[family])
    one, two = stored_bytes(shape, trained), stored_bytes(replace(shape, layers=2), trained)
    copies = 2 * shape.linear_parameters() if trained == "full_bf16" else 0  # autocast's, of the weights
    per_token = (two - one - copies) / (ROWS * WIDTH)
    assert stored_per_token(shape, Weights(trained=trained), width=WIDTH) == pytest.approx(per_token, rel=LEFT_OUT)


@pytest.mark.parametrize("trained", ["full", "full_bf16", "lora", "nf4"])
def test_more_rows_take_more_and_checkpointing_takes_less(trained: Trained) -> None:
    shape = replace(SMALL, layers=8)
    weights = Weights(trained=trained)
    few, many = (training_pass(shape, weights, rows=rows, width=64, steps=32) for rows in (2, 16))
    again = training_pass(shape, replace(weights, checkpointing=True), rows=16, width=64, steps=32)
    assert few < many
    assert again < many / 2
    assert inference_pass(shape, weights, rows=16, width=64, steps=32) < again


def test_the_cache_of_sampling_is_that_of_transformers() -> None:
    config = {**SMALL.config(), "num_hidden_layers": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    with torch.no_grad():
        cache = model(input_ids=torch.ones(3, 40, dtype=torch.long), use_cache=True).past_key_values
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    found = sampling_pass(replace(SMALL, layers=4), Weights(trained="full"), rows=3, prompt=1, steps=39)
    # one layer more, while it grows; and the logits of a step: 12 bytes for each of 3 rows and 64 entries
    assert found == pytest.approx(held * 5 / 4 + 12 * 3 * 64)
