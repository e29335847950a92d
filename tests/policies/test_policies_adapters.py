"""An adapter brings its tokenizer and its embedding; each name of `target_modules` matches a module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ippo_lightning.data import byte_tokenizer
from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from tests.support.small_tokenizers import chat_tokenizer

EMBEDDINGS = ["embed_tokens", "lm_head"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved_adapter(
    folder: Path, *, rows: int, kept: list[str], targets: list[str] | None = None, **more: Any
) -> LoraSettings:
    """Save a base with a byte tokenizer, and an adapter with a chat tokenizer that adds six tokens to it."""
    chat = chat_tokenizer(eos_token="<|im_end|>")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, **SIZES)).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    if more.pop("resized", True):
        model.resize_token_embeddings(len(chat), mean_resizing=False)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets or ["q_proj"], modules_to_save=kept or None)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder / "adapter", **more)
    chat.save_pretrained(folder / "adapter")
    return LoraSettings(adapter_path=str(folder / "adapter"))


@pytest.mark.parametrize("rows", [258, 264, 300], ids=["fewer rows", "as many", "spare rows"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_policy_is_what_peft_loads_on_the_resized_base(tmp_path: Path, rows: int, safe: bool) -> None:
    lora = saved_adapter(tmp_path, rows=rows, kept=EMBEDDINGS, safe_serialization=safe)
    policy = CausalLMPolicy(pretrained=str(tmp_path / "base"), lora=lora, chat_template=True)
    assert policy.tokenizer.eos_token == "<|im_end|>"
    ids, mask = policy.text.encode_prompts(["7+5?"], max_length=100)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(len(policy.tokenizer), mean_resizing=False)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = loaded(ids, attention_mask=mask.long()).logits
        found = policy.language_model(ids, attention_mask=mask.long()).logits
    assert torch.equal(found, expected)


def test_reference_and_critic_of_such_a_policy_start_from_it(tmp_path: Path) -> None:
    lora = saved_adapter(tmp_path, rows=258, kept=EMBEDDINGS)
    policy = CausalLMPolicy(pretrained=str(tmp_path / "base"), lora=lora, value="separate")
    encoded = policy.text.encode_demonstrations(["7+5?"], ["<think>12</think>12"], max_length=100)
    output = policy(*encoded, with_values=True)
    assert torch.equal(output.log_probs.detach(), policy.reference_log_probs(*encoded))
    assert torch.isfinite(output.values).all()
    folders = policy.save_pretrained(tmp_path / "again")
    again = CausalLMPolicy(pretrained=str(folders["merged"]), reference="none")
    assert torch.allclose(again(*encoded).log_probs, output.log_probs, atol=1e-4)


def test_the_users_own_tokenizer_comes_before_that_of_the_adapter(tmp_path: Path) -> None:
    lora = saved_adapter(tmp_path, rows=300, kept=[], resized=False)
    base = str(tmp_path / "base")
    assert CausalLMPolicy(pretrained=base, lora=lora).tokenizer.eos_token == "<|im_end|>"
    assert CausalLMPolicy(pretrained=base, lora=lora, tokenizer=base).tokenizer.eos_token == "<eos>"


def test_added_tokens_without_a_saved_embedding_are_refused_in_one_line(tmp_path: Path) -> None:
    lora = saved_adapter(tmp_path, rows=258, kept=[], resized=False)
    with pytest.raises(
        UserError, match=r"eos_token has the id 258.*embedding has 258 rows.*resized embedding"
    ) as caught:
        CausalLMPolicy(pretrained=str(tmp_path / "base"), lora=lora)
    assert "\n" not in str(caught.value)


def test_a_change_of_an_embedding_without_its_rows_is_refused_in_one_line(tmp_path: Path) -> None:
    lora = saved_adapter(tmp_path, rows=258, kept=[], targets=["embed_tokens", "q_proj"], save_embedding_layers=False)
    with pytest.raises(UserError, match="changes an embedding of 264 rows, the base has 258") as caught:
        CausalLMPolicy(pretrained=str(tmp_path / "base"), lora=lora)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "wrong", "near"),
    [
        (["q_proj", "v_prj"], "v_prj", "v_proj"),
        (["gate_pro"], "gate_pro", "gate_proj"),
        (["self_attn.q_poj"], "self_attn.q_poj", "self_attn.q_proj"),
        (["c_attn", "q_proj"], "c_attn", None),
    ],
)
def test_each_target_module_must_match(
    make_policy: Callable[..., CausalLMPolicy], names: list[str], wrong: str, near: str | None
) -> None:
    with pytest.raises(UserError, match=f"policy.lora.target_modules: '{wrong}' does not match any module") as caught:
        make_policy(lora=LoraSettings(target_modules=names))
    assert near is None or f"did you mean '{near}'?" in str(caught.value)


@pytest.mark.parametrize(
    "names", [["q_proj", "v_proj"], ["self_attn.q_proj"], ["model.layers.0.mlp.up_proj"], "all-linear"]
)
def test_names_that_match_are_adapted(make_policy: Callable[..., CausalLMPolicy], names: Any) -> None:
    policy = make_policy(lora=LoraSettings(target_modules=names))
    adapted = {name.split(".lora_")[0] for name, _ in policy.named_trainable_parameters() if ".lora_" in name}
    assert names == "all-linear" or all(any(path.endswith(name) for path in adapted) for name in names)
