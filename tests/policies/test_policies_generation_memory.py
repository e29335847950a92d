"""Sampling within the memory that there is: a cut of the batch changes no response and no later random number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_parts import tiny_data, tiny_module, tiny_policy

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings, encode_prompts
from ippo_lightning.policies.generation import generate
from ippo_lightning.policies.generation.random_rows import RandomRows

OUT_OF_MEMORY = torch.OutOfMemoryError("out of memory")
PROMPTS = ["7+12?", "1+1?", "35+4?", "2+2?", "8+9?"]


def tight(monkeypatch: pytest.MonkeyPatch, *, limit: int, error: Exception = OUT_OF_MEMORY) -> list[int]:
    """Let a draw of more rows fail after it has used random numbers; return the rows of each draw."""
    honest, made = generate.generated, []

    def generated(network: Any, request: Any, **options: Any) -> Any:
        made.append(len(request.prompt_ids))
        found = honest(network, request, **options)
        if made[-1] > limit:
            raise error
        return found

    monkeypatch.setattr(generate, "generated", generated)
    return made


def sampled(policy: CausalLMPolicy, settings: SamplingSettings) -> tuple[torch.Tensor, ...]:
    """Return responses, masks, and the random numbers that come next."""
    torch.manual_seed(11)
    samples = policy.sample(*encode_prompts(policy.tokenizer, PROMPTS, max_length=16), settings)
    return samples.response_ids, samples.response_mask, samples.truncated, torch.rand(4)


@pytest.mark.parametrize("rows", [[0, 1], [3], [4, 0, 2]], ids=str)
def test_rows_of_a_batch_are_drawn_as_in_the_whole_batch(rows: list[int]) -> None:
    probabilities = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).softmax(-1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    whole = torch.stack([torch.multinomial(probabilities, num_samples=1) for _ in range(50)])
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    places = torch.tensor(rows)
    with RandomRows(places, num_rows=5, state=state, device=torch.device("cpu")) as stream:
        found = torch.stack([torch.multinomial(probabilities[places], num_samples=1) for _ in range(50)])
    assert torch.equal(found, whole[:, places])
    assert torch.equal(stream.state(), after)
    assert torch.equal(torch.get_rng_state(), state), "the stream itself has not moved"


@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.8, "temperature": 0.7}, {"greedy": True}, {"batch_size": 4}, {"stop_tokens": ["1"]}]
)
def test_a_batch_that_does_not_fit_gives_the_same_responses_in_parts(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    settings = SamplingSettings(num_responses=2, max_new_tokens=12, **options)
    whole = sampled(policy, settings)
    made, policy = tight(monkeypatch, limit=3), tiny_policy()
    with pytest.warns(UserWarning, match="sampling: the device's memory is too small, continuing with"):
        found = sampled(policy, settings)
    assert max(made) > 3
    for one, other in zip(whole, found, strict=True):
        assert torch.equal(one, other)
    made.clear()
    again = sampled(policy, settings)
    assert max(made) <= 3, "later batches begin with parts that fit"
    assert torch.equal(again[0], whole[0])


def test_an_evaluation_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data()
    data.setup()
    batch = next(iter(data.val_dataloader()))
    modules = [tiny_module(), tiny_module()]
    modules[0].evaluate_batch(batch, 0)
    tight(monkeypatch, limit=2)
    with pytest.warns(UserWarning, match="continuing with"):
        modules[1].evaluate_batch(batch, 0)
    first, second = (module.evaluation_metrics.compute() for module in modules)
    assert str(first) == str(second)  # as text, because NaN is not equal to itself


def test_a_response_that_does_not_fit_alone_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, memory_error: Exception
) -> None:
    tight(monkeypatch, limit=0, error=memory_error)
    with (
        pytest.raises(UserError, match="sampling: one response of 16 tokens does not fit") as raised,
        pytest.warns(UserWarning, match="continuing with"),
    ):
        sampled(tiny_policy(), SamplingSettings(num_responses=1, max_new_tokens=12))
    assert "\n" not in str(raised.value)
