"""The real vLLM on a CPU (`make test-vllm`): it samples from the policy, whatever the policy's weights become."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from scipy.stats import chisquare

from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.timeout(600),
]
MODEL = str(Path(__file__).parents[2] / "experiments/models/arithmetic_llama")
ENGINE = {"enforce_eager": True, "max_model_len": 64, "max_num_seqs": 64}
TEXTS = ["7+12=?", "1?", "3*4?", "2+2+2+2?", "9-3+11?"]


def policy_of(kind: str, tmp_path: Path) -> CausalLMPolicy:
    if kind == "full":
        return CausalLMPolicy(pretrained=MODEL, value="none", reference="none")
    if kind == "a new model":  # vLLM's kernels need heads of at least 32
        config = {
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "initializer_range": 0.2,
            "max_position_embeddings": 64,
        }
        return CausalLMPolicy(config=config, tokenizer=MODEL, value="none", reference="none")
    return CausalLMPolicy(pretrained=MODEL, lora=LoraSettings(r=4), value="none", reference="none")


def with_engine(**settings: Any) -> SamplingSettings:
    return SamplingSettings(
        **{"num_responses": 1, "max_new_tokens": 16, "sampler": "vllm", "engine": ENGINE} | settings
    )


def encoded(policy: CausalLMPolicy, texts: list[str] = TEXTS) -> tuple[torch.Tensor, torch.Tensor]:
    return policy.text.encode_prompts(texts, max_length=32)


def forget_engines(policy: CausalLMPolicy) -> None:
    """End the engines of a policy now: a machine with little memory has room for one at a time."""
    policy._samplers.clear()


@pytest.mark.parametrize("kind", ["adapter", "full", "a new model"])
def test_the_engine_follows_the_policy_over_updates(
    kind: str, tmp_path: Path, move_weights: Callable[..., None]
) -> None:
    policy = policy_of(kind, tmp_path)
    responses = []
    for _ in range(3):
        greedy = {"max_new_tokens": 16, "num_responses": 1, "greedy": True}
        plain = policy.sample(*encoded(policy), SamplingSettings(**greedy))
        drawn = policy.sample(*encoded(policy), with_engine(**greedy))
        assert torch.equal(drawn.response_ids, plain.response_ids)
        assert torch.equal(drawn.response_mask, plain.response_mask)
        responses.append(plain.response_ids.tolist())
        # at a temperature that is not 1: the engine reports the log-probs of what it drew from
        drawn = policy.sample(*encoded(policy), with_engine(temperature=0.7))
        scored = policy(*encoded(policy), drawn.response_ids, drawn.response_mask, temperature=0.7).log_probs
        assert drawn.log_probs is not None
        # float32 on both sides, other kernels: 1e-5 of logits of a size of about ten
        torch.testing.assert_close(drawn.log_probs, scored.detach(), atol=2e-4, rtol=1e-4)
        move_weights(policy, 0.05)
    assert responses[0] != responses[1] != responses[2]  # otherwise an engine that never changes would pass
    forget_engines(policy)


def test_the_engine_draws_tokens_as_often_as_the_policy_says(tmp_path: Path, move_weights: Callable[..., None]) -> None:
    policy = policy_of("adapter", tmp_path)
    move_weights(policy, 0.2)  # otherwise one token has nearly all of the probability
    torch.manual_seed(3)
    prompts = encoded(policy, ["7+12=?"])
    drawn = policy.sample(*prompts, with_engine(num_responses=1500, max_new_tokens=1)).response_ids[:, 0]
    every = torch.arange(len(policy.tokenizer))
    rows = [part.expand(len(every), -1) for part in prompts]
    with torch.no_grad():
        probabilities = policy(*rows, every[:, None], torch.ones_like(every[:, None]).bool()).log_probs[:, 0].exp()
    expected = probabilities.double() * len(drawn)
    counts = torch.bincount(drawn, minlength=len(every)).double()
    common = expected >= 5  # the approximation of chi-square needs about five; the rest makes one class
    assert common.sum() >= 3
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    assert chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue > 1e-3
    forget_engines(policy)


def test_responses_end_with_a_stop_string_as_in_the_plain_sampler(tmp_path: Path) -> None:
    policy = policy_of("full", tmp_path)
    greedy = {"max_new_tokens": 16, "num_responses": 1, "greedy": True}
    text = policy.text.decode(*policy.sample(*encoded(policy), SamplingSettings(**greedy))[:2])[0]
    stop = text[1:3]  # of two characters, which are two tokens
    plain = policy.sample(*encoded(policy), SamplingSettings(**greedy, stop_strings=[stop]))
    drawn = policy.sample(*encoded(policy), with_engine(**greedy, stop_strings=[stop]))
    for mine, other in zip(drawn[:3], plain[:3], strict=True):
        assert torch.equal(mine, other)
    ended = policy.text.decode(*drawn[:2])[0]
    assert text.startswith(ended)
    assert stop in ended
    assert len(ended) < len(text)
    # the same seeds give the same responses, so that a resumed run continues as the unbroken one
    torch.manual_seed(1)
    first = policy.sample(*encoded(policy), with_engine(num_responses=4)).response_ids
    torch.manual_seed(1)
    assert torch.equal(policy.sample(*encoded(policy), with_engine(num_responses=4)).response_ids, first)
    # and the engine has nothing left to sample from once its process is gone
    for child in psutil.Process(os.getpid()).children(recursive=True):
        if "VLLM" in child.name() or "EngineCore" in " ".join(child.cmdline()):
            child.kill()
    with pytest.raises(ConnectionError, match=r"sampler: vLLM's engine has ended .* loop.resume: true"):
        policy.sample(*encoded(policy), with_engine())
    forget_engines(policy)
