"""What is noted of each draw is the log-prob of the distribution that the token was drawn from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.policies.generation.generate import generated
from ippo_lightning.policies.generation.recording import DrawnLogProbs
from ippo_lightning.policies.generation.request import build_request

TEXTS = ["7+12=?", "1?", "3*4?", "2+2+2+2?"]


@pytest.mark.parametrize("stop_strings", [None, ["+"]], ids=["no stop string", "a stop string"])
def test_the_notes_are_transformers_own_scores(
    make_policy: Callable[..., CausalLMPolicy], stop_strings: list[str] | None
) -> None:
    policy = make_policy("llama", seed=1)
    settings = SamplingSettings(num_responses=3, max_new_tokens=8, temperature=0.7, stop_strings=stop_strings)
    prompts = policy.text.encode_prompts(TEXTS, max_length=32)
    request = build_request(*prompts, settings=settings, counts=None, text=policy.text, context_length=64)
    notes = DrawnLogProbs(0.7)
    found = generated(policy.language_model, request, with_scores=True, notes=notes)
    ids = found.sequences[:, prompts[0].shape[1] :]
    scores = torch.stack(found.scores, dim=1).log_softmax(-1)  # transformers has divided them by the temperature
    torch.testing.assert_close(notes.log_probs(), scores.gather(2, ids[..., None])[..., 0])


@pytest.mark.parametrize("way", [{}, {"batch_size": 5}], ids=["plain", "in batches"])
def test_half_precision_sampling_reports_log_probs_near_the_policys_and_changes_no_weight(
    make_policy: Callable[..., CausalLMPolicy], way: dict[str, object]
) -> None:
    policy = make_policy("llama", seed=1)
    before = [parameter.clone() for parameter in policy.parameters()]
    prompts = policy.text.encode_prompts(TEXTS, max_length=32)
    settings = SamplingSettings(num_responses=3, max_new_tokens=8, temperature=0.7, dtype="bfloat16", **way)
    samples = policy.sample(*prompts, settings)
    rows = torch.arange(len(TEXTS)).repeat_interleave(3)
    scored = policy(*(part[rows] for part in prompts), *samples[:2], temperature=0.7).log_probs
    assert samples.log_probs is not None
    gap = (samples.log_probs - scored)[samples.response_mask].abs()
    assert 0 < gap.max() < 0.5  # eight bits of logits of a size of about ten
    assert (samples.log_probs[~samples.response_mask] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_the_plain_sampler_reports_none(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy("llama")
    prompts = policy.text.encode_prompts(TEXTS, max_length=32)
    assert policy.sample(*prompts, SamplingSettings(max_new_tokens=4)).log_probs is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, r"sampling.dtype: 'int8' is unknown; use bfloat16 or float16 or null"),
        ({"dtype": "bfloat16", "sampler": "continuous"}, r"dtype: bfloat16 has no effect on continuous"),
        ({"dtype": "bfloat16", "cache": "static"}, r"dtype: bfloat16 needs another cache than static"),
    ],
    ids=["unknown", "continuous", "static"],
)
def test_a_precision_without_effect_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingSettings(**settings)
