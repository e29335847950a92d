"""Options of scoring: several directions, cosines, lengths, packed rows, parts by parameter."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import small_nets
import torch
from tiny_language_models import (
    Batch,
    a_batch,
    a_direction,
    episode_losses,
    language_model,
    scores_by_definition,
    with_lora,
)
from torch import Tensor, nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence import CoverageError, influence_scores, score_episodes

EXACT = 1e-8
"""Tolerance in float64; the norms of language models compute in float32."""


def norms_by_definition(model: nn.Module, batch: Batch) -> Tensor:
    """Return the norm of each episode's gradient, from `.grad` of a copy."""
    copied = copy.deepcopy(model).eval()
    norms = []
    for row in range(len(batch.ids)):
        copied.zero_grad(set_to_none=True)
        episode_losses(copied, batch)[row].backward()
        norms.append(sum(p.grad.square().sum() for p in copied.parameters() if p.grad is not None).sqrt())
    return torch.stack(norms)


def a_model(kind: str) -> nn.Module:
    if kind == "lora":
        return with_lora(language_model("llama"), "llama")
    return language_model(kind.removeprefix("tied "), tied=kind.startswith("tied"))


MODELS = pytest.mark.parametrize("kind", ["llama", "tied qwen2", "tied gpt2", "lora"])


@pytest.mark.parametrize("method", ["hooks", "per_episode"])
@MODELS
def test_several_directions_in_one_pass_give_the_scores_of_each_alone(kind: str, method: str) -> None:
    model = a_model(kind)
    directions = [a_direction(model, seed=seed) for seed in (5, 6, 7)]
    directions[1] = {name: block for number, (name, block) in enumerate(directions[1].items()) if number % 2}
    batches = [a_batch(3, seed=1), a_batch(4, seed=2)]
    together = influence_scores(model, episode_losses, batches, directions, method=method)
    alone = [influence_scores(model, episode_losses, batches, entry, method=method) for entry in directions]
    assert together.shape == (3, 7)
    torch.testing.assert_close(together, torch.stack(alone), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("method", ["hooks", "per_episode"])
@MODELS
def test_cosines_are_scores_divided_by_the_norms_of_both_gradients(kind: str, method: str) -> None:
    model, batch = a_model(kind), a_batch(5)
    direction = a_direction(model)
    norm = sum(block.square().sum() for block in direction.values()).sqrt()
    expected = scores_by_definition(model, episode_losses, batch, direction) / norms_by_definition(model, batch) / norm
    cosines = influence_scores(model, episode_losses, [batch], direction, method=method, normalise="cosine")
    torch.testing.assert_close(cosines, expected, rtol=1e-6, atol=EXACT)


def test_cosines_are_right_for_a_module_that_is_called_twice() -> None:
    model = small_nets.a_net()
    direction = a_direction(model)
    batch = small_nets.a_batch()
    by_hooks, by_definition = (
        influence_scores(model, small_nets.squared_errors, [batch], direction, method=method, normalise="cosine")
        for method in ("hooks", "per_episode")
    )
    torch.testing.assert_close(by_hooks, by_definition, rtol=EXACT, atol=EXACT)


def test_an_episode_with_a_larger_loss_has_a_larger_score_and_the_same_cosine() -> None:
    model, batch = language_model("llama"), a_batch(5)
    direction = a_direction(model)
    larger = Batch(batch.ids, batch.attention_mask, batch.response_mask, 3 * batch.factors)
    score, larger_score = (influence_scores(model, episode_losses, [entry], direction) for entry in (batch, larger))
    torch.testing.assert_close(larger_score, 3 * score, rtol=1e-6, atol=EXACT)
    cosine, larger_cosine = (
        influence_scores(model, episode_losses, [entry], direction, normalise="cosine") for entry in (batch, larger)
    )
    torch.testing.assert_close(larger_cosine, cosine, rtol=1e-6, atol=EXACT)
    assert cosine.abs().max() <= 1


def test_an_episode_without_a_gradient_has_cosine_zero() -> None:
    model, batch = language_model("llama"), a_batch(3)
    silent = Batch(batch.ids, batch.attention_mask, batch.response_mask, torch.tensor([1.0, 0.0, 1.0]).double())
    cosines = influence_scores(model, episode_losses, [silent], a_direction(model), normalise="cosine")
    assert cosines[1] == 0
    assert (cosines[[0, 2]] != 0).all()


def test_normalise_length_divides_scores_by_the_number_of_tokens() -> None:
    model, batches = language_model("llama"), [a_batch(3, seed=1), a_batch(4, seed=2)]
    direction = a_direction(model)

    def lengths(batch: Batch) -> Tensor:
        return batch.response_mask.sum(dim=1)

    plain = influence_scores(model, episode_losses, batches, direction)
    counts = torch.cat([lengths(batch) for batch in batches])
    normalised = influence_scores(model, episode_losses, batches, direction, normalise="length", lengths=lengths)
    torch.testing.assert_close(normalised, plain / counts, rtol=EXACT, atol=EXACT)


@MODELS
def test_parts_by_parameter_sum_to_the_score_and_equal_the_scores_along_single_blocks(kind: str) -> None:
    model, batches = a_model(kind), [a_batch(3, seed=1), a_batch(4, seed=2)]
    direction = a_direction(model)
    parts = score_episodes(model, episode_losses, batches, [direction]).by_parameter
    assert parts.keys() == direction.keys()
    total = influence_scores(model, episode_losses, batches, direction)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(dim=0)[0], total, rtol=EXACT, atol=EXACT)
    name = list(direction)[1]
    alone = influence_scores(model, episode_losses, batches, {name: direction[name]})
    torch.testing.assert_close(parts[name][0], alone, rtol=EXACT, atol=EXACT)


@dataclass(frozen=True)
class Packed:
    """Rows of tokens; each row contains several episodes one after another, then padding."""

    ids: Tensor
    segments: Tensor
    positions: Tensor
    factors: Tensor


def pack(batch: Batch, *, rows: list[list[int]], width: int) -> Packed:
    ids, positions = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), -1)
    for number, episodes in enumerate(rows):
        place = 0
        for episode in episodes:
            tokens = batch.ids[episode][batch.attention_mask[episode]]
            span = slice(place, place + len(tokens))
            ids[number, span], segments[number, span] = tokens, episode
            positions[number, span] = torch.arange(len(tokens))
            place = span.stop
    return Packed(ids, segments, positions, batch.factors)


def packed_losses(model: nn.Module, packed: Packed, prompt_lengths: Tensor) -> Tensor:
    same = (packed.segments[:, :, None] == packed.segments[:, None, :]).tril()
    same |= torch.eye(same.shape[-1], dtype=torch.bool)
    logits = model(
        input_ids=packed.ids, attention_mask=same[:, None], position_ids=packed.positions, use_cache=False
    ).logits
    log_probs = logits[:, :-1].log_softmax(-1).gather(2, packed.ids[:, 1:, None]).squeeze(2)
    owner, position = packed.segments[:, 1:], packed.positions[:, 1:]
    is_response = (owner >= 0) & (position >= prompt_lengths[owner.clamp(min=0)])
    zeros = torch.zeros_like(packed.factors)
    sums = zeros.index_add(0, owner[is_response], log_probs[is_response])
    counts = zeros.index_add(0, owner[is_response], torch.ones_like(log_probs[is_response]))
    return -packed.factors * sums / counts


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_packed_rows_have_the_scores_of_padded_rows(adapted: bool) -> None:
    model = language_model("llama")
    model = with_lora(model, "llama") if adapted else model
    batch, direction = a_batch(5), a_direction(model)
    padded = influence_scores(model, episode_losses, [batch], direction)
    prompts = (batch.attention_mask & ~batch.response_mask).sum(dim=1)
    packed = pack(batch, rows=[[0, 3, 1], [4, 2]], width=32)
    scores = influence_scores(
        model,
        lambda module, entry: packed_losses(module, entry, prompts),
        [packed],
        direction,
        segments=lambda entry: entry.segments,
        checksum_batches=-1,
    )
    torch.testing.assert_close(scores, padded, rtol=1e-6, atol=1e-7)
    assert scores.shape == (5,)


def test_segments_that_do_not_fit_are_refused() -> None:
    model, batch = language_model("llama"), a_batch(5)
    direction = a_direction(model)
    with pytest.raises(CoverageError, match="segments of shape"):
        influence_scores(
            model, episode_losses, [batch], direction, segments=lambda _: torch.zeros(5, 3, dtype=torch.long)
        )
    with pytest.raises(UserError, match="contains episode 5, expected numbers below 5"):
        influence_scores(model, episode_losses, [batch], direction, segments=lambda _: torch.full((5, 10), 5))
    with pytest.raises(UserError, match="expected \\[rows, tokens\\], integers"):
        influence_scores(model, episode_losses, [batch], direction, segments=lambda _: torch.zeros(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "loud"}, "normalise: got 'loud', expected one of none, cosine, length"),
        ({"normalise": "length"}, "lengths: got None, expected a function of a batch"),
        ({"normalise": "cosine", "method": "forward"}, "'cosine' requires gradients of single episodes"),
        ({"direction": []}, "direction: got an empty sequence"),
    ],
)
def test_the_error_about_a_senseless_option_states_what_is_allowed(options: dict[str, object], message: str) -> None:
    model = language_model("llama")
    arguments = {"direction": a_direction(model), **options}
    with pytest.raises(UserError, match=message):
        influence_scores(model, episode_losses, [a_batch(2)], **arguments)
