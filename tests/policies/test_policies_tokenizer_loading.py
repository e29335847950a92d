"""Every EOS ends a response, the pad token changes no number, and ids without an embedding are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.maths import shape_rewards
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings, encode_demonstrations
from ippo_lightning.policies.tokenization import TextFormat
from ippo_lightning.policies.tokenizer_loading import eos_ids_of

NAMES = ["5", ";"]  # stand for <|eot_id|> and the like: any id may be one


@pytest.fixture
def several_ends(make_policy: Callable[..., CausalLMPolicy], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> str:
    """A saved model whose generation config names two more EOS ids."""
    folder = tmp_path / "several"
    make_policy(reference="none", value="none").save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [2, *tokenizer.convert_tokens_to_ids(NAMES)]
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("settings", [{}, {"sampler": "continuous"}, {"cache": "static"}, {"batch_size": 24}])
def test_each_eos_of_the_generation_config_ends_a_response(several_ends: str, settings: dict[str, Any]) -> None:
    policy = CausalLMPolicy(pretrained=several_ends)
    ends = {2, *policy.tokenizer.convert_tokens_to_ids(NAMES)}
    torch.manual_seed(0)
    samples = policy.sample(
        *policy.text.encode_prompts(["7+12?", "1?"], max_length=32),
        SamplingSettings(num_responses=48, max_new_tokens=8, temperature=3.0, **settings),
    )
    seen = set()
    for ids, mask, truncated in zip(*samples[:3], strict=True):
        kept = ids[mask].tolist()
        assert not ends & set(kept[:-1])
        assert bool(truncated) == (kept[-1] not in ends)
        seen.add(kept[-1])
    assert ends < seen
    # so the penalty for a missing end is not taken from a response that ended with the second one
    rewards = shape_rewards(
        outcome_rewards=torch.zeros(96),
        kl=torch.zeros(samples.response_mask.shape),
        kl_coef=0.0,
        mask=samples.response_mask,
        truncated=samples.truncated,
        missing_eos_penalty=1.0,
    )
    last = samples.response_ids.gather(1, samples.response_mask.sum(1, keepdim=True) - 1)[:, 0]
    assert torch.equal(rewards.sum(1) < 0, ~torch.isin(last, torch.tensor(sorted(ends))))


def test_vllm_gets_every_eos(several_ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Engine:
        def __init__(self, **arguments: object) -> None: ...

        def generate(self, prompts: list[Any], parameters: list[Any], **_: object) -> list[Any]:
            given.extend(parameters)
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(
                            token_ids=(9, 8, 7), logprobs=[{i: SimpleNamespace(logprob=-1.0)} for i in (9, 8, 7)]
                        )
                    ]
                )
                for _ in prompts
            ]

    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm"].LLM, sys.modules["vllm"].SamplingParams = Engine, SimpleNamespace
    sys.modules["vllm.lora.request"].LoRARequest = lambda *_: None
    policy = CausalLMPolicy(pretrained=several_ends, lora=LoraSettings(r=2))
    policy.sample(
        *policy.text.encode_prompts(["7+12?"], max_length=32),
        SamplingSettings(num_responses=1, max_new_tokens=3, sampler="vllm"),
    )
    assert given[0].stop_token_ids == [2, *policy.tokenizer.convert_tokens_to_ids(NAMES)]


def test_a_demonstration_may_end_with_any_eos(several_ends: str) -> None:
    policy = CausalLMPolicy(pretrained=several_ends, reference="none")
    encoded = policy.text.encode_demonstrations(["1?", "1?"], ["12;", "12"], max_length=32)
    assert [row[mask].tolist()[-1] for row, mask in zip(encoded.response_ids, encoded.response_mask, strict=True)] == [
        policy.tokenizer.convert_tokens_to_ids(";"),
        2,
    ]


def test_a_saved_model_names_every_eos_of_its_policy(
    make_policy: Callable[..., CausalLMPolicy], make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    make_policy(reference="none").save_pretrained(tmp_path / "base")
    policy = CausalLMPolicy(pretrained=str(tmp_path / "base"), tokenizer=make_tokenizer(eos_token=";"))
    policy.save_pretrained(tmp_path / "tuned")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert set(eos_ids_of(saved)) == {2, policy.tokenizer.eos_token_id}


@pytest.mark.parametrize(("given", "expected"), [(None, ()), (2, (2,)), ([2, 7], (2, 7)), (-1, ()), ([2, -1], (2,))])
def test_the_eos_ids_of_a_model_are_a_number_a_list_or_none(
    make_policy: Callable[..., CausalLMPolicy], given: Any, expected: tuple[int, ...]
) -> None:
    model = make_policy(reference="none").language_model
    model.generation_config.eos_token_id = given
    assert eos_ids_of(model) == expected


@pytest.mark.parametrize("pad", [None, "</s>", "x"])
def test_the_pad_token_changes_no_number(
    make_policy: Callable[..., CausalLMPolicy], base_folder: str, pad: str | None
) -> None:
    plain, other = CausalLMPolicy(pretrained=base_folder), CausalLMPolicy(pretrained=base_folder, pad_token=pad)
    if pad is None:
        other.tokenizer.pad_token = None
    assert plain.tokenizer.pad_token == "<pad>"
    outputs, drawn = [], []
    for policy in (plain, other):
        encoded = policy.text.encode_demonstrations(["7+12?", "1?"], ["7+12=19", "1"], max_length=32)
        outputs.append(policy(*encoded, with_values=True, with_entropy=True))
        torch.manual_seed(1)
        samples = policy.sample(encoded.prompt_ids, encoded.prompt_mask, SamplingSettings(max_new_tokens=8))
        drawn.append((samples.response_ids.masked_fill(~samples.response_mask, -1), samples.truncated))
    assert torch.equal(outputs[0].log_probs, outputs[1].log_probs)
    assert torch.equal(outputs[0].values, outputs[1].values)
    assert all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))


def test_a_pad_token_outside_the_vocabulary_is_refused_with_the_nearest(
    make_policy: Callable[..., CausalLMPolicy],
) -> None:
    with pytest.raises(
        UserError, match=r"policy.pad_token: '<pat>' is not in the tokenizer's vocabulary; did you mean '<pad>'"
    ):
        make_policy(pad_token="<pat>")


def test_a_tokenizer_object_of_the_caller_keeps_its_pad_token(
    make_policy: Callable[..., CausalLMPolicy], tokenizer: PreTrainedTokenizerFast
) -> None:
    assert make_policy(pad_token="</s>").tokenizer.pad_token == "</s>"
    assert tokenizer.pad_token == "<pad>"


def test_an_added_token_without_an_embedding_is_refused_where_it_occurs(
    base_folder: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.add_tokens(["<tool>"])
    policy = CausalLMPolicy(pretrained=base_folder, tokenizer=tokenizer)
    policy.text.encode_prompts(["1?"], max_length=32)
    with pytest.raises(UserError, match=r"prompts\[1\]: '<tool>' has the id 28, and the model's embedding has 28 rows"):
        policy.text.encode_prompts(["1?", "1<tool>?"], max_length=32)
    with pytest.raises(UserError, match=r"responses\[0\]: '<tool>' has the id 28"):
        policy.text.encode_demonstrations(["1?"], ["1<tool>"], max_length=32)


def test_an_eos_without_an_embedding_is_refused_at_once(base_folder: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    with pytest.raises(UserError, match=r"policy.tokenizer: eos_token has the id 28, and the model's embedding has 28"):
        CausalLMPolicy(pretrained=base_folder, tokenizer=tokenizer)


@pytest.mark.parametrize(("option", "text"), [("strip", "7+5=1212"), ("keep", "<think>7+5=12</think>12")])
def test_tags_are_kept_or_stripped_and_the_end_never_shows(
    tokenizer: PreTrainedTokenizerFast, option: Any, text: str
) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    encoded = encode_demonstrations(tokenizer, ["7?", "7?"], ["<think>7+5=12</think>12", "1"], max_length=32)
    form = TextFormat(tokenizer=tokenizer, special_tokens=option)
    assert form.decode(encoded.response_ids, encoded.response_mask) == [text, "1"]
