"""The parts of the estimate are those of real optimizers and layers, and add up as the stages of an iteration do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from memory_tables import rewritten_page, sizes_of
from torch import nn
from torch.optim import AdamW

from ippo_lightning.errors import UserError
from ippo_lightning.modules.memory_estimate import (
    GIB,
    GPUS,
    Method,
    RunSizes,
    estimate,
    first_pass_rows,
    optimizer_bytes,
    smallest_gpu,
    weight_bytes,
)
from ippo_lightning.modules.memory_passes import Trained, Weights
from ippo_lightning.modules.model_shapes import SHAPES, ModelShape

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
SMALL = ModelShape(
    source="", model_type="llama", layers=2, hidden=256, intermediate=512, heads=4, kv_heads=4, head_dim=64,
    vocabulary=1000, tied=True,
)  # fmt: skip
SIZES = RunSizes(prompt=16, response=16, update_rows=2, scoring_rows=2, target_rows=2, sampled_rows=2)


def test_moments_take_what_a_real_optimizer_holds() -> None:
    weight = nn.Parameter(torch.ones(100, 10))
    optimizer = AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = [entry for entry in optimizer.state[weight].values() if entry.numel() > 1]
    assert sum(entry.nbytes for entry in moments) == 1000 * optimizer_bytes("adamw")


def test_four_bit_weights_take_what_a_real_layer_holds() -> None:
    layer = Linear4bit(256, 512, bias=False, compress_statistics=True, quant_type="nf4")
    layer = layer.to("cpu")
    state = layer.weight.quant_state
    held = layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    one = replace(SMALL, layers=1)
    without = 2 * (one.embedding_parameters() + one.other_parameters()) + 4 * one.adapter_parameters(8)
    per_weight = (weight_bytes(one, Weights(trained="nf4")) - without) / one.linear_parameters()
    assert per_weight == pytest.approx(held / (256 * 512), rel=1e-3)


def test_what_full_fine_tuning_keeps_is_sixteen_bytes_per_parameter_of_policy_and_reference() -> None:
    # 2 layers of 4 * 256 * 256 + 3 * 256 * 512 weights, 5 norms of 256, an embedding of 1000 * 256
    parameters = 2 * (4 * 256 * 256 + 3 * 256 * 512) + 5 * 256 + 1000 * 256
    kept = estimate(SMALL, Weights(trained="full"), "ppo", SIZES).kept
    head = 257
    assert kept == {
        "weights": 4 * (parameters + head),
        "reference": 4 * parameters,
        "optimizer": 8 * (parameters + head),
    }


@pytest.mark.parametrize("method", ["sft", "ppo", "ippo"])
def test_an_adapter_has_no_second_model(method: Method) -> None:
    assert estimate(SMALL, Weights(trained="lora"), method, SIZES).kept["reference"] == 0


def test_a_critic_with_an_adapter_keeps_a_second_adapter_and_a_second_forward() -> None:
    weights, name = Weights(trained="nf4"), "rho-1b"
    head, adapter = (estimate(SHAPES[name], weights, "ppo", SIZES, critic=kind) for kind in ("head", "adapter"))
    more = SHAPES[name].adapter_parameters(weights.rank)
    assert adapter.kept["weights"] - head.kept["weights"] == 4 * more
    assert adapter.kept["optimizer"] - head.kept["optimizer"] == 8 * more
    passes = head.stages["update"] - sum(head.kept.values())
    assert adapter.stages["update"] - head.stages["update"] > passes / 2
    assert adapter.stages["sampling"] - head.stages["sampling"] == pytest.approx(12 * more)
    with pytest.raises(UserError, match="critic: 'adapter' needs a frozen base, and the weights are full"):
        estimate(SHAPES[name], Weights(trained="full"), "ppo", SIZES, critic="adapter")


def test_groups_of_demonstrations_are_copies_of_an_adapter_and_few_of_a_whole_model() -> None:
    def peak(trained: Trained, groups: int) -> float:
        found = estimate(SHAPES["rho-1b"], Weights(trained=trained), "ippo", SIZES.least(), health_groups=groups)
        return found.stages["validation gradient"] - sum(found.kept.values())

    adapter = 4 * (SHAPES["rho-1b"].adapter_parameters(8) + 2048 + 1)
    assert peak("lora", 8) - peak("lora", 4) == 4 * adapter
    # the mean, one of each half, one group, and the gradient of the pass
    copy = 4 * (SHAPES["rho-1b"].parameters() + 2048 + 1)
    assert peak("full", 8) == peak("full", 4)
    assert 0 <= peak("full", 8) - 5 * copy < copy


@pytest.mark.parametrize("trained", ["full", "full_bf16", "lora", "nf4"])
@pytest.mark.parametrize("name", SHAPES)
def test_influence_never_takes_less_than_ppo_and_small_passes_never_more(name: str, trained: Trained) -> None:
    weights = Weights(trained=trained)
    ppo, ippo = (estimate(SHAPES[name], weights, method, SIZES).peak for method in ("ppo", "ippo"))
    assert estimate(SHAPES[name], weights, "ippo", SIZES.least()).peak <= ippo
    assert ppo <= ippo


@pytest.mark.parametrize(
    ("needed", "gpu"), [(7.2, 8), (7.3, 12), (21.6, 24), (126, 141), (127, None)], ids=lambda value: str(value)
)
def test_a_tenth_of_the_gpu_stays_free(needed: float, gpu: int | None) -> None:
    assert smallest_gpu(needed * GIB - 1) == gpu
    assert gpu is None or gpu in GPUS


def test_a_first_pass_has_at_most_the_tokens_of_auto_and_at_least_a_row() -> None:
    assert first_pass_rows(width=1000, at_most=64) == 16
    assert first_pass_rows(width=100, at_most=64) == 64
    assert first_pass_rows(width=20000, at_most=64) == 1


def test_sizes_are_those_of_the_task_files() -> None:
    sizes = sizes_of("math", "ppo")
    assert (sizes.response, sizes.update_rows) == (512, 8)
    assert not math.isnan(sizes.width)


def test_the_page_has_the_tables_of_the_function() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert rewritten_page(text) == text, "run python benchmarks/memory.py --write"
