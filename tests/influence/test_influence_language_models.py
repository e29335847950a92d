"""Hooks give the scores of one plain backward per episode, for every family of models that the project trains."""

from __future__ import annotations

import pytest
import torch
from tiny_language_models import (
    Batch,
    a_batch,
    a_direction,
    episode_losses,
    language_model,
    relative_error,
    scores_by_definition,
    with_lora,
)
from torch import Tensor, nn

from ippo_lightning.influence import CoverageError, influence_scores

EXACT = 1e-8  # float64, but the models' norms and softmax compute in float32, with the same formula on both sides
SINGLE = 1e-5  # rounding of float32 over the sums of about 20 layers
HALF = 2e-2  # bfloat16 has 8 bits, and the two methods round in different places; measured 7e-3 at most

FAMILIES = ["llama", "qwen2", "gemma2", "phi3", "gpt2"]
GRID = [
    (family, attention)
    for family in FAMILIES
    for attention in ("eager", "sdpa")
    if (family, attention) != ("gemma2", "sdpa")
]


def scores_of(model: nn.Module, direction: dict[str, Tensor], batch: Batch, **options: object) -> Tensor:
    return influence_scores(model, episode_losses, [batch], direction, **options)


@pytest.mark.parametrize(("family", "attention"), GRID)  # Gemma-2 supports only eager attention
@pytest.mark.parametrize("tied", [False, True])
def test_hooks_equal_the_definition_when_all_parameters_train(family: str, attention: str, tied: bool) -> None:
    model = language_model(family, attention=attention, tied=tied)
    batch = a_batch(left_padding=attention == "sdpa")
    direction = a_direction(model)
    expected = scores_by_definition(model, episode_losses, batch, direction)
    assert relative_error(scores_of(model, direction, batch), expected) < EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_equal_the_definition_when_adapters_train(family: str) -> None:
    model, batch = with_lora(language_model(family), family), a_batch(left_padding=family != "gemma2")
    direction = a_direction(model)
    assert len(direction) >= 8
    expected = scores_by_definition(model, episode_losses, batch, direction)
    assert relative_error(scores_of(model, direction, batch), expected) < EXACT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [False, True])
def test_one_backward_per_episode_equals_the_definition(family: str, adapters: bool) -> None:
    model, batch = language_model(family), a_batch(left_padding=family != "gemma2")
    model = with_lora(model, family) if adapters else model
    direction = a_direction(model)
    expected = scores_by_definition(model, episode_losses, batch, direction)
    assert relative_error(scores_of(model, direction, batch, method="per_episode"), expected) < EXACT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained", ["full", "full, tied", "adapters"])
@pytest.mark.parametrize("later", [False, True], ids=["checked batch", "batch without weight gradients"])
def test_hooks_equal_the_definition_in_single_precision(family: str, trained: str, later: bool) -> None:
    model = language_model(family, dtype=torch.float32, attention="eager", tied="tied" in trained)
    model = with_lora(model, family) if trained == "adapters" else model
    batch = a_batch(dtype=torch.float32)
    direction = a_direction(model)
    expected = scores_by_definition(model, episode_losses, batch, direction)
    batches = [batch, batch] if later else [batch]
    scores = influence_scores(model, episode_losses, batches, direction)[-len(expected) :]
    assert scores.dtype == torch.float32
    assert relative_error(scores, expected) < SINGLE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_scores_in_half_precision_are_within_its_rounding(family: str, adapters: bool, autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    torch.manual_seed(0)  # for the adapters
    model = language_model(family, dtype=dtype)
    model = with_lora(model, family) if adapters else model
    direction = a_direction(model)

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return episode_losses(module, batch)

    batch = a_batch(dtype=torch.float32, left_padding=family != "gemma2")
    scores = influence_scores(model, losses, [batch], direction)
    assert scores.dtype == torch.float32
    expected = scores_by_definition(model, losses, batch, direction)
    assert relative_error(scores, expected) < HALF


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("adapters", [False, True])
def test_batches_after_the_checked_one_have_the_same_scores(family: str, adapters: bool) -> None:
    model, batch = language_model(family), a_batch()
    model = with_lora(model, family) if adapters else model
    first, second = influence_scores(model, episode_losses, [batch, batch], a_direction(model)).chunk(2)
    assert relative_error(second, first) < EXACT


def test_permuted_episodes_have_permuted_scores() -> None:
    model, batch = language_model("llama"), a_batch()
    direction = a_direction(model)
    order = [3, 0, 4, 1, 2]
    permuted = scores_of(model, direction, batch.rows(order))
    assert relative_error(permuted, scores_of(model, direction, batch)[order]) < EXACT


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 3], [4, 1]])
def test_the_micro_batch_size_never_changes_a_score(sizes: list[int]) -> None:
    model, batch = language_model("qwen2", tied=True), a_batch()
    direction = a_direction(model)
    parts = [batch.rows(rows.tolist()) for rows in torch.arange(5).split(sizes)]
    scores = influence_scores(model, episode_losses, parts, direction)
    assert relative_error(scores, scores_of(model, direction, batch)) < EXACT


@pytest.mark.parametrize("sides", [(3, 0), (0, 4), (2, 5)])
def test_padding_never_changes_a_score(sides: tuple[int, int]) -> None:
    model, batch = language_model("llama", attention="sdpa"), a_batch()
    direction = a_direction(model)
    padded = Batch(
        torch.nn.functional.pad(batch.ids, sides, value=7),
        torch.nn.functional.pad(batch.attention_mask, sides),
        torch.nn.functional.pad(batch.response_mask, sides),
        batch.factors,
    )
    assert relative_error(scores_of(model, direction, padded), scores_of(model, direction, batch)) < EXACT


def test_the_padding_index_of_an_embedding_counts_only_through_a_tied_head() -> None:
    model, batch = language_model("llama", tied=True), a_batch()
    assert model.get_input_embeddings().padding_idx == 0
    seen = Batch(
        batch.ids.masked_fill(batch.response_mask, 0), batch.attention_mask, batch.response_mask, batch.factors
    )
    direction = a_direction(model)
    expected = scores_by_definition(model, episode_losses, seen, direction)
    assert relative_error(scores_of(model, direction, seen), expected) < EXACT


def test_frozen_parameters_do_not_count() -> None:
    model, batch = language_model("llama", tied=False), a_batch()
    direction = a_direction(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    kept = {name: block for name, block in direction.items() if "layers.1" in name}
    expected = scores_by_definition(model, episode_losses, batch, kept)
    assert relative_error(scores_of(model, kept, batch), expected) < EXACT


def test_broadcast_position_embeddings_are_refused() -> None:
    model, batch = language_model("gpt2"), a_batch()

    def without_positions(module: nn.Module, part: Batch) -> Tensor:
        logits = module(input_ids=part.ids, attention_mask=part.attention_mask.long(), use_cache=False).logits
        return part.factors * logits.logsumexp(-1).mean(1)

    with pytest.raises(ValueError, match=r"'transformer\.wpe' ran on a batch of 1 .* 5 episodes.*position_ids"):
        influence_scores(model, without_positions, [batch], a_direction(model))


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_models_with_checkpoints_have_the_same_scores(adapters: bool, reentrant: bool) -> None:
    model, batch = language_model("llama"), a_batch()
    model = with_lora(model, "llama") if adapters else model
    direction = a_direction(model)
    expected = scores_of(model, direction, batch)
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    layer = (model.get_base_model() if adapters else model).model.layers[0]
    inner = layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    scores = influence_scores(model, episode_losses, [batch, batch], direction)
    inner.remove()
    assert relative_error(scores, expected.repeat(2)) < EXACT
    # A recomputed layer runs twice per forward. Reentrant checkpoints are switched off while scoring.
    assert (len(calls) > 2) is not reentrant
    assert all(module.training for module in model.modules())


def test_dropout_is_off_while_scoring() -> None:
    model = with_lora(language_model("gpt2"), "gpt2", lora_dropout=0.5)
    model.config.attn_pdrop = model.config.resid_pdrop = 0.5
    batch, direction = a_batch(), a_direction(model)
    expected = scores_of(model.eval(), direction, batch)
    assert torch.equal(scores_of(model.train(), direction, batch), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_error_about_weight_decomposed_adapters_names_them(family: str) -> None:
    model = with_lora(language_model(family), family, use_dora=True)
    batch, direction = a_batch(), a_direction(model)
    with pytest.raises(CoverageError, match=r"lora_magnitude_vector.* of type DoraLinearLayer"):
        scores_of(model, direction, batch)
    expected = scores_by_definition(model, episode_losses, batch, direction)
    assert relative_error(scores_of(model, direction, batch, method="per_episode"), expected) < EXACT


def test_an_embedding_counts_only_if_it_is_trainable() -> None:
    model, batch = language_model("llama"), a_batch()
    everything = a_direction(model)
    with_embedding = scores_of(model, everything, batch)
    model.get_input_embeddings().requires_grad_(False)
    without = scores_of(model, {k: v for k, v in everything.items() if "embed" not in k}, batch)
    expected = scores_by_definition(model.requires_grad_(True), episode_losses, batch, everything)
    only = scores_of(model, {k: v for k, v in everything.items() if "embed" in k}, batch)
    assert relative_error(with_embedding, expected) < EXACT
    assert relative_error(without + only, expected) < EXACT
    assert bool((only != 0).all())


def test_modules_trained_in_full_next_to_adapters_count() -> None:
    model = with_lora(language_model("qwen2"), "qwen2", modules_to_save=["lm_head", "embed_tokens"])
    batch, direction = a_batch(), a_direction(model)
    assert sum("modules_to_save" in name for name in direction) == 2
    expected = scores_by_definition(model, episode_losses, batch, direction)
    assert relative_error(scores_of(model, direction, batch), expected) < EXACT


def test_a_reference_pass_without_the_adapter_does_not_count() -> None:
    model = with_lora(language_model("llama"), "llama")
    batch, direction = a_batch(), a_direction(model)

    def with_reference(module: nn.Module, part: Batch) -> Tensor:
        with torch.no_grad(), module.disable_adapter():
            reference = episode_losses(module, part)
        return episode_losses(module, part) - reference

    plain = influence_scores(model, episode_losses, [batch], direction)
    torch.testing.assert_close(
        influence_scores(model, with_reference, [batch], direction), plain, rtol=1e-8, atol=1e-10
    )
