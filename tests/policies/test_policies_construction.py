"""Equal settings build equal policies, and wrong settings give an error of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonargparse
import pytest
import torch
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from transformers import PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, LoraSettings

EVERYTHING: list[dict[str, Any]] = [
    {},
    {"value": "separate", "kind": "gpt2"},
    {"lora": LoraSettings(), "reference": "adapter_copy"},
]


@pytest.mark.parametrize("arguments", EVERYTHING)
def test_equal_seeds_give_equal_weights_and_different_seeds_different_ones(
    make_policy: Callable[..., CausalLMPolicy], arguments: dict[str, Any]
) -> None:
    first = make_policy(**arguments, seed=4)
    torch.rand(3)
    second, third = make_policy(**arguments, seed=4), make_policy(**arguments, seed=5)
    changed = []
    for (name, one), two, three in zip(first.named_parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(one, two), name
        changed += [name for _ in range(not torch.equal(one, three))]
    assert any("value_head" in name or "critic.head" in name for name in changed)
    assert any("lora_A" in name for name in changed) or "lora" not in arguments
    assert any("embed" in name or "wte" in name for name in changed)


@pytest.mark.parametrize("arguments", EVERYTHING)
def test_building_a_policy_does_not_change_the_callers_random_numbers(
    make_policy: Callable[..., CausalLMPolicy], arguments: dict[str, Any]
) -> None:
    before = torch.get_rng_state()
    make_policy(**arguments)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_a_policy_does_not_change_the_callers_random_numbers(base_folder: str, adapter_folder: str) -> None:
    before = torch.get_rng_state()
    CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(adapter_path=adapter_folder), value="separate")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_model_takes_vocabulary_and_special_tokens_from_the_tokenizer(
    make_policy: Callable[..., CausalLMPolicy], tokenizer: PreTrainedTokenizerFast
) -> None:
    config = make_policy("llama").language_model.config
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_the_users_configuration_is_not_changed(
    configs: dict[str, dict[str, Any]], tokenizer: PreTrainedTokenizerFast
) -> None:
    before = json.dumps(configs["llama"])
    CausalLMPolicy(config=configs["llama"], tokenizer=tokenizer)
    assert json.dumps(configs["llama"]) == before


def test_adapters_are_the_only_trainable_weights_of_the_model_and_in_float32(
    make_policy: Callable[..., CausalLMPolicy],
) -> None:
    policy = make_policy(lora=LoraSettings(r=4), dtype="bfloat16")
    assert {p.dtype for p in policy.policy_parameters()} == {torch.float32}
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert "lora_A" not in name or parameter.shape[0] == 4


def test_lora_settings_reach_the_adapter(make_policy: Callable[..., CausalLMPolicy]) -> None:
    policy = make_policy(lora=LoraSettings(r=2, alpha=6, target_modules=["q_proj", "v_proj"]))
    config = policy.model.peft_config["default"]
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (2, 6, {"q_proj", "v_proj"})
    assert {name.split(".")[-4] for name, _ in policy.model.named_parameters() if "lora_A" in name} == {
        "q_proj",
        "v_proj",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config": None}, ["policy.pretrained, policy.config", "neither"]),
        ({"pretrained": "x"}, ["policy.pretrained, policy.config", "both"]),
        ({"config": {"hidden_size": 8}}, ["policy.config.model_type", "none"]),
        ({"config": {"model_type": "lama"}}, ["policy.config.model_type", "'lama'"]),
        ({"config": {"model_type": "llama", "hiden_size": 8}}, ["policy.config.hiden_size", "hidden_size?"]),
        ({"config": {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}}, ["policy.config", "30"]),
        ({"config": {"model_type": "t5"}}, ["policy.config", "no causal model"]),
        ({"fields": {"vocab_size": 10}}, ["policy", "10 tokens", "28"]),
        ({"dtype": "float23"}, ["policy.dtype", "'float23'", "float32"]),
        ({"value": "heads"}, ["policy.value", "'heads'", "separate"]),
        ({"value_init_std": -1.0}, ["policy.value_init_std", "-1.0"]),
        ({"attn_implementation": "fast"}, ["policy.config", "fast"]),
        ({"quantization": "nf4"}, ["policy.quantization", "add lora"]),
        ({"quantization": "nf4", "lora": LoraSettings()}, ["policy.quantization", "policy.config", "pretrained"]),
        ({"quantization": "nf4", "lora": LoraSettings(), "value": "separate"}, ["policy.value", "use head"]),
        ({"lora": LoraSettings(dropout=0.1)}, ["policy.lora.dropout", "0.1", "keep_dropout"]),
        ({"lora": LoraSettings(target_modules=["nothing"])}, ["policy.lora.target_modules", "nothing"]),
        ({"lora": LoraSettings(adapter_path="/nowhere")}, ["policy.lora.adapter_path", "/nowhere"]),
        ({"tokenizer": None}, ["policy.tokenizer", "none"]),
        ({"tokenizer": "/nowhere"}, ["policy.tokenizer", "/nowhere"]),
    ],
)
def test_wrong_settings_are_named_in_one_line(
    configs: dict[str, dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    arguments: dict[str, Any],
    words: list[str],
) -> None:
    config = {**configs["llama"], **arguments.pop("fields", {})}
    with pytest.raises(UserError) as caught:
        CausalLMPolicy(**{"config": config, "tokenizer": tokenizer, **arguments})
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_policy_needs_a_tokenizer_that_stops(
    make_policy: Callable[..., CausalLMPolicy], tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"tokenizer\.eos_token: none"):
        make_policy()


def refused(pretrained: str | Path, tokenizer: PreTrainedTokenizerFast | None) -> str:
    with pytest.raises(UserError, match=r"policy\.pretrained: ") as caught:
        CausalLMPolicy(pretrained=str(pretrained), tokenizer=tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_or_empty_folder_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert "no folder" in refused(tmp_path / "missing", tokenizer)
    line = f"policy.pretrained: '{tmp_path}' is no model, because there is no config.json in it; "
    assert refused(tmp_path, tokenizer).startswith(line)
    assert refused(tmp_path, None).startswith(line)  # no tokenizer is at fault, which would be in the same folder
    (tmp_path / "model" / "merged").mkdir(parents=True)
    (tmp_path / "model" / "merged" / "config.json").touch()
    assert refused(tmp_path, None) == f"{line}did you mean '{tmp_path}/model/merged'?"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RepositoryNotFoundError("404", response=Mock()), "the Hub has no such model"),
        (HFValidationError("a b"), "it is no Hub id either"),
        (OfflineModeIsEnabled("off"), r"the Hub cannot be reached \(OfflineModeIsEnabled\)"),
        (TimeoutError(), "the Hub cannot be reached"),
    ],
)
def test_a_name_that_the_hub_does_not_have_is_a_fault_of_pretrained(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ippo_lightning.storage.model_names.model_info", Mock(side_effect=error))
    with pytest.raises(UserError, match=rf"^policy\.pretrained: cannot load 'nobody/nothing': .* and {said}"):
        CausalLMPolicy(pretrained="nobody/nothing")


def test_an_adapter_given_as_a_model_is_explained(adapter_folder: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert "policy.lora.adapter_path" in refused(adapter_folder, tokenizer)
    assert "merged" in refused(Path(adapter_folder).parent, tokenizer)


def test_a_model_without_its_weights_is_refused(base_folder: str, tokenizer: PreTrainedTokenizerFast) -> None:
    next(Path(base_folder).glob("*.safetensors")).unlink()
    assert "cannot load" in refused(base_folder, tokenizer)


def test_a_trunk_without_a_language_model_head_is_refused(
    make_policy: Callable[..., CausalLMPolicy], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    make_policy(reference="none").language_model.base_model.save_pretrained(tmp_path / "trunk")
    assert "lm_head" in refused(tmp_path / "trunk", tokenizer)


def test_a_policy_is_built_from_yaml(tmp_path: Path, base_folder: str, demonstrations: EncodedResponses) -> None:
    written = tmp_path / "policy.yaml"
    written.write_text(
        f"""
policy:
  class_path: ippo_lightning.policies.CausalLMPolicy
  init_args:
    config: {{model_type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 8}}
    tokenizer: {base_folder}
    lora: {{r: 2, target_modules: [q_proj]}}
    value: separate
    reference: copy
"""
    )
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(CausalLMPolicy, "policy")
    policy = parser.instantiate(parser.parse_args(["--config", str(written)])).policy
    assert policy.model.peft_config["default"].r == 2
    assert policy(*demonstrations, with_values=True).values.shape == demonstrations.response_ids.shape
