"""What is saved is loaded again and compared with the policy; tied weights under adapters are right in the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.policies import saving_check as saving_check_module
from ippo_lightning.policies.loading import merge_adapter

IDS = torch.tensor([[5, 9, 12, 20, 3], [4, 4, 7, 1, 2]])


@pytest.fixture
def tied_base(make_policy: Callable[..., CausalLMPolicy], tmp_path: Path) -> str:
    make_policy(fields={"tie_word_embeddings": True}, reference="none", value="none").save_pretrained(tmp_path / "tied")
    return str(tmp_path / "tied")


def log_probs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float().log_softmax(-1)


@pytest.mark.parametrize(
    "targets",
    [["q_proj", "lm_head"], ["q_proj", "embed_tokens"], ["embed_tokens", "lm_head"], ["q_proj"]],
    ids=lambda targets: "+".join(targets),
)
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_merged_model_of_tied_weights_computes_what_the_policy_computes(
    tied_base: str,
    move_weights: Callable[..., None],
    tmp_path: Path,
    targets: list[str],
    quantization: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # PEFT warns of merges that go wrong; none does, so it warns of nothing
    warnings.filterwarnings("error", message=".*tie.*", category=UserWarning)
    lora = LoraSettings(r=4, target_modules=targets)
    policy = CausalLMPolicy(pretrained=tied_base, lora=lora, quantization=quantization)
    start = log_probs(policy.language_model)
    move_weights(policy)
    trained = log_probs(policy.language_model)
    assert (trained - start).abs().max() > 0.1
    merged = AutoModelForCausalLM.from_pretrained(policy.save_pretrained(tmp_path / "saved")["merged"])
    # one float32 product instead of two, as in the tests of saving
    torch.testing.assert_close(log_probs(merged), trained, rtol=0, atol=1e-4)
    assert merged.config.tie_word_embeddings == (targets == ["q_proj"])
    assert ("the merged model has both" in caplog.text) == (targets != ["q_proj"])
    assert torch.equal(log_probs(policy.language_model), trained)
    assert policy.language_model.config.tie_word_embeddings


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]], ids=lambda targets: "+".join(targets))
def test_a_critic_begins_with_the_features_of_the_policy_that_it_judges(
    tied_base: str, tmp_path: Path, targets: list[str]
) -> None:
    """An adapter of the head must not reach the embedding, though both are one weight in the base."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tied_base), config)
    adapted.save_pretrained(tmp_path / "sft")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tie.*", category=UserWarning)
        merged = merge_adapter(AutoModelForCausalLM.from_pretrained(tied_base), str(tmp_path / "sft"))
    torch.testing.assert_close(log_probs(merged), log_probs(adapted), rtol=0, atol=1e-4)


@pytest.mark.parametrize("trained", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]], ids="+".join)
def test_tied_modules_that_train_in_full_are_merged_as_they_are(
    tied_base: str, move_weights: Callable[..., None], tmp_path: Path, trained: list[str]
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=trained)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tied_base), config).save_pretrained(tmp_path / "sft")
    policy = CausalLMPolicy(pretrained=tied_base, lora=LoraSettings(adapter_path=str(tmp_path / "sft")))
    move_weights(policy)
    expected = log_probs(policy.language_model)
    merged = AutoModelForCausalLM.from_pretrained(policy.save_pretrained(tmp_path / "saved")["merged"])
    torch.testing.assert_close(log_probs(merged), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_of_other_weights_is_an_error(
    make_policy: Callable[..., CausalLMPolicy],
    move_weights: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    lora: LoraSettings | None,
    dtype: str,
) -> None:
    policy = make_policy(lora=lora, dtype=dtype)
    move_weights(policy)
    policy.save_pretrained(tmp_path / "right")
    plain = saving_check_module.save_model

    def damaged(*arguments: Any) -> dict[str, Path]:
        saved = plain(*arguments)
        file = next(next(iter(saved.values())).glob("*.safetensors"))
        state = load_file(file)
        save_file({name: weight * 1.5 for name, weight in state.items()}, file, metadata={"format": "pt"})
        return saved

    monkeypatch.setattr(saving_check_module, "save_model", damaged)
    with pytest.raises(UserError, match=rf"saved model: .* differs by .* nats .*rounding of {dtype} explains"):
        policy.save_pretrained(tmp_path / "wrong")
    policy.self_check = False
    assert policy.save_pretrained(tmp_path / "unchecked")


def test_an_adapter_that_cannot_be_merged_is_named(base_folder: str, tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], lora_bias=True)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), config).save_pretrained(tmp_path / "sft")
    policy = CausalLMPolicy(pretrained=base_folder, lora=LoraSettings(adapter_path=str(tmp_path / "sft")))
    with pytest.raises(UserError, match=r"saved model: the adapter cannot be merged; .* use the adapter alone"):
        policy.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter" / "adapter_config.json").is_file()


def test_a_missing_memory_for_the_second_load_does_not_end_a_run(
    make_policy: Callable[..., CausalLMPolicy],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(saving_check_module, "_loaded", no_memory)
    assert make_policy().save_pretrained(tmp_path / "saved")
    assert "no memory to load it again" in caplog.text
