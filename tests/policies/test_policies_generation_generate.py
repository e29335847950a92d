"""Responses come from the policy's own distribution, end where they should, and leave no state behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, Samples, SamplingSettings, encode_prompts

ARCHITECTURES = ["llama", "gpt2", "qwen2", "gemma2"]


def encoded(policy: CausalLMPolicy, prompts: list[str]) -> tuple[Tensor, Tensor]:
    return encode_prompts(policy.tokenizer, prompts, max_length=32)


def with_rows(prompts: tuple[Tensor, Tensor], samples: Samples) -> tuple[Tensor, ...]:
    copies = len(samples.response_ids) // len(prompts[0])
    return (
        *(part.repeat_interleave(copies, dim=0) for part in prompts),
        samples.response_ids,
        samples.response_mask,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [None, LoraSettings()])
def test_scoring_own_samples_gives_the_probabilities_of_sampling(
    make_policy: Callable[..., CausalLMPolicy],
    move_weights: Callable[..., None],
    architecture: str,
    lora: LoraSettings | None,
) -> None:
    policy = make_policy(architecture, lora=lora)
    if lora is not None:
        move_weights(policy)
    prompts = encoded(policy, ["7+12?", "1?"])
    settings = SamplingSettings(num_responses=3, max_new_tokens=12, temperature=0.8)
    torch.manual_seed(5)
    samples = policy.sample(*prompts, settings)
    torch.manual_seed(5)
    rows = tuple(part.repeat_interleave(3, dim=0) for part in prompts)
    own = GenerationConfig(do_sample=True, temperature=0.8, top_k=0, max_new_tokens=12, eos_token_id=2, pad_token_id=0)
    again = policy.language_model.eval().generate(
        rows[0],
        attention_mask=rows[1].long(),
        generation_config=own,
        return_dict_in_generate=True,
        output_scores=True,
    )
    drawn = policy.language_model.compute_transition_scores(again.sequences, again.scores, normalize_logits=True)
    assert torch.equal(again.sequences[:, prompts[0].shape[1] :], samples.response_ids)
    scored = policy(*with_rows(prompts, samples), temperature=0.8).log_probs
    # float32, and a key-value cache against one full pass; log-probabilities are of order 10
    torch.testing.assert_close(
        scored, drawn.masked_fill(~samples.response_mask, 0.0).to(scored.dtype), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_do_not_depend_on_padding(make_policy: Callable[..., CausalLMPolicy], architecture: str) -> None:
    policy = make_policy(architecture, seed=1)
    settings = SamplingSettings(num_responses=1, max_new_tokens=10, greedy=True)
    texts = ["7+12=?", "1?", "3*4?"]
    together = policy.sample(*encoded(policy, texts), settings)
    for row, text in enumerate(texts):
        alone = policy.sample(*encoded(policy, [text]), settings)
        kept = together.response_ids[row][together.response_mask[row]]
        assert torch.equal(kept, alone.response_ids[0][alone.response_mask[0]])
        assert together.truncated[row] == alone.truncated[0]


def test_responses_to_the_same_prompt_are_neighbours(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy()
    prompts = encoded(policy, ["7+12?", "1?"])
    settings = SamplingSettings(num_responses=3, max_new_tokens=4, greedy=True)
    samples = policy.sample(*prompts, settings)
    once = policy.sample(*prompts, SamplingSettings(num_responses=1, max_new_tokens=4, greedy=True))
    assert torch.equal(samples.response_ids, once.response_ids.repeat_interleave(3, dim=0))


def test_draws_follow_the_distribution(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy()
    prompts = encoded(policy, ["1?"])
    count = 4000
    samples = policy.sample(*prompts, SamplingSettings(num_responses=count, max_new_tokens=1, temperature=1.5))
    found = torch.bincount(samples.response_ids[:, 0], minlength=28) / count
    logits = policy.language_model(prompts[0]).logits[0, -1] / 1.5
    # four standard deviations of a frequency
    bound = 4 * (logits.softmax(-1) * (1 - logits.softmax(-1)) / count).sqrt() + 1e-3
    assert ((found - logits.softmax(-1)).abs() < bound).all()


def test_unlikely_tokens_are_sampled_too(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy(fields={"vocab_size": 300})
    settings = SamplingSettings(num_responses=1000, max_new_tokens=1, temperature=100.0)
    drawn = policy.sample(*encoded(policy, ["1?"]), settings).response_ids
    # almost uniform over 300 tokens; the library's own default keeps the 50 likeliest
    assert len(drawn.unique()) > 200


def test_sampling_ends_when_every_response_has_stopped(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy(seed=1)
    prompts = encoded(policy, ["1?"])
    free = policy.sample(*prompts, SamplingSettings(num_responses=1, max_new_tokens=6, greedy=True))
    assert free.response_ids.shape == (1, 6)
    first = policy.tokenizer.decode(free.response_ids[0, :1])
    settings = SamplingSettings(num_responses=1, max_new_tokens=6, greedy=True, stop_tokens=[first])
    assert policy.sample(*prompts, settings).response_ids.tolist() == free.response_ids[:, :1].tolist()


def test_generation_settings_saved_with_a_model_have_no_effect(
    make_policy: Callable[..., CausalLMPolicy], base_folder: str
) -> None:
    GenerationConfig(
        do_sample=True,
        top_k=1,
        temperature=0.01,
        repetition_penalty=9.0,
        min_new_tokens=5,
        suppress_tokens=[5, 6],
        forced_eos_token_id=2,
    ).save_pretrained(base_folder)
    clean, warped = make_policy(), CausalLMPolicy(pretrained=base_folder)
    assert warped.language_model.generation_config.top_k == 1
    prompts = encoded(clean, ["7+12?", "1?"])
    settings = SamplingSettings(num_responses=8, max_new_tokens=12)
    draws = []
    for policy in (clean, warped):
        torch.manual_seed(0)
        draws.append(policy.sample(*prompts, settings))
    assert torch.equal(draws[0].response_ids, draws[1].response_ids)
    assert warped.language_model.generation_config.top_k == 1


def test_top_p_keeps_only_likely_tokens(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy()
    prompts = encoded(policy, ["1?"])
    with pytest.warns(UserWarning, match="top_p"):
        settings = SamplingSettings(num_responses=200, max_new_tokens=1, top_p=1e-6)
    likeliest = policy.language_model(prompts[0]).logits[0, -1].argmax()
    assert (policy.sample(*prompts, settings).response_ids == likeliest).all()


@pytest.mark.parametrize("pad_token", ["<pad>", "</s>"])
def test_custom_stop_tokens_end_a_response_and_are_part_of_it(
    make_policy: Callable[..., CausalLMPolicy], make_tokenizer: Callable[..., PreTrainedTokenizerFast], pad_token: str
) -> None:
    tokenizer = make_tokenizer(pad_token=pad_token)
    policy = make_policy(tokenizer=tokenizer)
    settings = SamplingSettings(num_responses=64, max_new_tokens=8, temperature=3.0, stop_tokens=[";", "\n"])
    samples = policy.sample(*encoded(policy, ["1?"]), settings)
    stops = {2, *(tokenizer.get_vocab()[text] for text in ";\n")}
    ends = set()
    for ids, mask, truncated in zip(*samples[:3], strict=True):
        kept = ids[mask].tolist()
        assert not stops & set(kept[:-1])
        assert (kept[-1] not in stops) == bool(truncated)
        assert len(kept) == 8 or not truncated
        assert (ids[~mask] == tokenizer.pad_token_id).all()
        ends.add(kept[-1])
    assert stops < ends  # each kind of stop was seen, and truncated responses too


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"lora": LoraSettings()}, {"gradient_checkpointing": True}])
def test_sampling_does_not_change_modes_and_settings(
    make_policy: Callable[..., CausalLMPolicy], arguments: dict[str, Any], fails: bool
) -> None:
    policy = make_policy(**arguments)
    policy.language_model.model.layers[0].eval()
    policy.language_model.config.use_cache = False
    own = policy.language_model.generation_config
    modes = [module.training for module in policy.modules()]
    assert len(set(modes)) == 2
    prompt_ids, prompt_mask = encoded(policy, ["7+12?"])
    if fails:
        with pytest.raises(IndexError):
            policy.sample(prompt_ids + 1000, prompt_mask, SamplingSettings(max_new_tokens=2))
    else:
        policy.sample(prompt_ids, prompt_mask, SamplingSettings(max_new_tokens=2))
    assert [module.training for module in policy.modules()] == modes
    assert policy.language_model.config.use_cache is False
    assert policy.language_model.generation_config is own
    assert torch.is_grad_enabled()


def test_sampling_uses_the_cache_and_evaluation_mode(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy(gradient_checkpointing=True)
    seen = []
    policy.language_model.model.register_forward_pre_hook(
        lambda module, _, named: seen.append((named["input_ids"].shape[1], module.training)), with_kwargs=True
    )
    policy.sample(*encoded(policy, ["7+12?"]), SamplingSettings(max_new_tokens=3, stop_tokens=None, temperature=0.1))
    assert [training for _, training in seen] == [False] * len(seen)
    assert [length for length, _ in seen] == [5] + [1] * (len(seen) - 1)


def test_a_response_that_does_not_fit_the_context_is_refused_before_sampling(
    make_policy: Callable[..., CausalLMPolicy],
) -> None:
    policy = make_policy("gpt2")
    prompts = encoded(policy, ["7+12?", "1?"])
    assert policy.context_length == 64
    policy.sample(*prompts, SamplingSettings(num_responses=1, max_new_tokens=59))
    with pytest.raises(UserError, match=r"sampling\.max_new_tokens: 60 after a prompt of 5 tokens .* 64"):
        policy.sample(*prompts, SamplingSettings(num_responses=1, max_new_tokens=60))
