"""The rows of the check, the difference of two results, and the bound of each precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.policies.probes import Probe, difference, probe_rows, tolerance_of
from ippo_lightning.policies.tokenization import TextFormat

MASK = torch.tensor([[True, True]])


def of(*distributions: list[float]) -> Probe:
    return Probe(torch.tensor([distributions]).log(), MASK[:, : len(distributions)])


def test_the_difference_is_the_mean_log_ratio_of_the_worst_token() -> None:
    expected, found = of([0.5, 0.5], [0.25, 0.75]), of([0.5, 0.5], [0.5, 0.5])
    worst = 0.25 * abs(math.log(0.25 / 0.5)) + 0.75 * abs(math.log(0.75 / 0.5))
    assert difference(expected, found) == pytest.approx(worst, rel=1e-6)
    # the median of two values is the lower one in torch, and the first token does not differ
    assert difference(expected, found, coarse=True) == 0.0


def test_a_token_that_only_one_of_them_can_draw_is_an_infinite_difference() -> None:
    assert difference(of([0.5, 0.5]), of([1.0, 0.0])) == math.inf
    assert difference(of([1.0, 0.0]), of([1.0, 0.0])) == 0.0
    assert difference(of([0.5, 0.5]), of([math.nan, 0.5])) == math.inf


def test_padding_steps_and_ids_beyond_the_vocabulary_do_not_count() -> None:
    expected = Probe(torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log(), torch.tensor([[True, False]]))
    assert difference(expected, of([0.5, 0.5], [1.0, 0.0])) == 0.0
    assert difference(expected, of([0.5, 0.5, 1e-30], [0.5, 0.5, 1e-30])) == 0.0


def test_a_row_is_the_same_whatever_stands_beside_it(tokenizer: PreTrainedTokenizerFast) -> None:
    text = TextFormat(tokenizer=tokenizer)
    alone = probe_rows(text, prompts=(False,), responses=(False,), context_length=64)
    beside = probe_rows(text, prompts=(False, True), responses=(False, True), context_length=64)
    again = probe_rows(text, prompts=(False, True), responses=(False, True), context_length=64)
    for ids, mask in ((0, 1), (2, 3)):
        assert torch.equal(beside[ids][0][beside[mask][0]], alone[ids][0][alone[mask][0]])
        assert torch.equal(beside[ids], again[ids])
        assert not set(beside[ids][beside[mask]].tolist()) & set(tokenizer.all_special_ids)
    assert not beside.prompt_mask[0, 0]
    assert not beside.response_mask[0, -1]


@pytest.mark.parametrize("context", [2, 5, 12])
def test_rows_fit_a_short_context(tokenizer: PreTrainedTokenizerFast, context: int) -> None:
    text = TextFormat(tokenizer=tokenizer)
    rows = probe_rows(text, prompts=(False, True), responses=(True, True), context_length=context)
    lengths = rows.prompt_mask.sum(1) + rows.response_mask.sum(1)
    assert 2 <= int(lengths.min()) <= int(lengths.max()) <= context


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_bound_follows_the_dtype(make_policy: Callable[..., CausalLMPolicy], dtype: str) -> None:
    tolerance = tolerance_of(make_policy(dtype=dtype, self_check=False).language_model)
    assert (tolerance.why, tolerance.coarse) == (dtype, dtype != "float32")


@pytest.mark.parametrize(
    ("quantization", "compute_dtype", "why"),
    [("nf4", None, "float32"), ("nf4", "bfloat16", "bfloat16"), ("int8", None, "8-bit weights")],
)
def test_the_bound_of_quantised_weights_is_that_of_their_products(
    base_folder: str, quantization: str, compute_dtype: str | None, why: str
) -> None:
    policy = CausalLMPolicy(
        pretrained=base_folder, lora=LoraSettings(), quantization=quantization, compute_dtype=compute_dtype
    )
    assert tolerance_of(policy.language_model).why == why
