"""4-bit models have the scores of a dense copy with the dequantised weights, an oracle without bitsandbytes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from tiny_language_models import (
    a_batch,
    a_direction,
    episode_losses,
    language_model,
    relative_error,
    scores_by_definition,
    with_lora,
)
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ippo_lightning.influence import CoverageError, RowShare, gradients_of_rows, influence_scores

SINGLE = 1e-5  # float32 on both sides, weights bit-equal


def quantized_model(family: str, folder: Path, *, tied: bool = False, width: int = 64) -> nn.Module:
    """Return a model with NF4 linear layers and LoRA, in training mode, with bitsandbytes' default flags."""
    language_model(family, dtype=torch.float32, width=width, tied=tied).save_pretrained(folder)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=nf4, device_map={"": "cpu"}, dtype=torch.float32
    )
    return with_lora(model, family).train()


@pytest.fixture
def quantized(tmp_path: Path) -> nn.Module:
    return quantized_model("llama", tmp_path, width=128)  # bitsandbytes repacks only full blocks of outputs


def linear4bit_layers(model: nn.Module) -> list[Linear4bit]:
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def dense_copy(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    for parent in list(copied.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
                dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                dense.weight = nn.Parameter(weight, requires_grad=False)
                dense.bias = layer.bias
                setattr(parent, name, dense)
    return copied


def roll_out(model: nn.Module) -> None:
    was_training = model.training
    with torch.no_grad():
        model.eval()(input_ids=a_batch().ids)
    model.train(was_training)


@pytest.mark.parametrize(
    ("family", "tied"),
    [("llama", False), ("llama", True), ("qwen2", False), ("gemma2", True), ("phi3", False), ("gpt2", True)],
)
def test_a_4bit_base_has_the_scores_of_its_dense_copy_after_a_rollout(family: str, tied: bool, tmp_path: Path) -> None:
    quantized = quantized_model(family, tmp_path, tied=tied)
    dense = dense_copy(quantized)
    assert len(linear4bit_layers(quantized)) == {"phi3": 8, "gpt2": 8}.get(family, 14)
    for layer in linear4bit_layers(quantized):
        layer.support_avx512bf16_for_cpu = False
    roll_out(quantized)
    batch = a_batch(dtype=torch.float32)
    direction = a_direction(quantized)
    expected = scores_by_definition(dense, episode_losses, batch, direction)
    scores = influence_scores(quantized, episode_losses, [batch, batch], direction)
    assert relative_error(scores, expected.repeat(2)) < SINGLE


def test_scoring_never_repacks_a_4bit_base(quantized: nn.Module) -> None:
    for layer in linear4bit_layers(quantized):
        layer.support_avx512bf16_for_cpu = True
    weights = [layer.weight.data.clone() for layer in linear4bit_layers(quantized)]
    expected = scores_by_definition(
        dense_copy(quantized), episode_losses, a_batch(dtype=torch.float32), a_direction(quantized)
    )
    scores = influence_scores(quantized, episode_losses, [a_batch(dtype=torch.float32)], a_direction(quantized))
    assert all(
        torch.equal(layer.weight.data, w) for layer, w in zip(linear4bit_layers(quantized), weights, strict=True)
    )
    assert relative_error(scores, expected) < SINGLE


def test_a_repacked_4bit_base_is_refused(quantized: nn.Module) -> None:
    roll_out(quantized)
    if not any(
        getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in linear4bit_layers(quantized)
    ):
        pytest.skip("this processor has no AVX512-bf16, so bitsandbytes does not repack")
    with pytest.raises(CoverageError, match="repacked for inference"):
        influence_scores(quantized, episode_losses, [a_batch(dtype=torch.float32)], a_direction(quantized))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_each_adapter_gets_the_gradient_of_its_own_rows(family: str, tmp_path: Path) -> None:
    model = quantized_model(family, tmp_path)
    batch, generator = a_batch(5, dtype=torch.float32), torch.Generator().manual_seed(7)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shares = {name: RowShare(torch.rand(5, generator=generator) < 0.6, 1.5) for name in trained}
    dense = dense_copy(model)
    of_rows = [
        torch.autograd.grad(loss, [dict(dense.named_parameters())[name] for name in trained], retain_graph=True)
        for loss in episode_losses(dense, batch)
    ]
    with gradients_of_rows(model, shares):
        episode_losses(model, batch).sum().backward()
    for number, (name, parameter) in enumerate(trained.items()):
        kept = [row[number] for row, keep in zip(of_rows, shares[name].keep.tolist(), strict=True) if keep]
        expected = 1.5 * sum(kept, torch.zeros_like(parameter))
        assert parameter.grad is not None
        assert relative_error(parameter.grad, expected) < SINGLE, name
