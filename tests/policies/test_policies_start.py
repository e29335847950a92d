"""A policy that begins where another run has ended has that run's weights, adapter and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.policies.start import start_of

PROMPTS, RESPONSES = ["7+12?", "1?"], ["=19", "#1"]


@pytest.fixture
def base(configs: dict[str, dict[str, Any]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> str:
    CausalLMPolicy(config=configs["llama"], tokenizer=tokenizer, value="none").save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def a_run(folder: Path, **settings: Any) -> CausalLMPolicy:
    """A policy with other weights than it had at its start, saved as a run saves it."""
    policy = CausalLMPolicy(value="none", **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    policy.save_pretrained(folder / "model")
    return policy


def log_probs(policy: CausalLMPolicy) -> torch.Tensor:
    encoded = policy.text.encode_demonstrations(PROMPTS, RESPONSES, max_length=64)
    with torch.no_grad():
        return policy(*encoded).log_probs


def test_a_whole_model_takes_the_place_of_the_one_that_is_named(base: str, tmp_path: Path) -> None:
    trained = a_run(tmp_path / "sft", pretrained=base)
    started = CausalLMPolicy(pretrained=base, start_from=str(tmp_path / "sft"))
    torch.testing.assert_close(log_probs(started), log_probs(trained), rtol=0, atol=0)
    assert not torch.equal(log_probs(started), log_probs(CausalLMPolicy(pretrained=base)))


def test_a_new_adapter_stands_on_a_whole_model(base: str, tmp_path: Path) -> None:
    trained = a_run(tmp_path / "sft", pretrained=base)
    # the adapter of the settings belongs to another start
    lora = LoraSettings(r=2, adapter_path=str(tmp_path / "elsewhere"))
    started = CausalLMPolicy(pretrained=base, start_from=str(tmp_path / "sft"), lora=lora)
    torch.testing.assert_close(log_probs(started), log_probs(trained), rtol=0, atol=0)


def test_an_adapter_is_continued_on_the_same_base(base: str, tmp_path: Path) -> None:
    trained = a_run(tmp_path / "sft", pretrained=base, lora=LoraSettings(r=3))
    started = CausalLMPolicy(pretrained=base, start_from=str(tmp_path / "sft"), lora=LoraSettings(r=8))
    torch.testing.assert_close(log_probs(started), log_probs(trained), rtol=0, atol=0)
    assert started.reference_kind == "adapter_copy"
    shapes = {tuple(parameter.shape) for name, parameter in started.named_parameters() if "lora_A" in name}
    assert {shape[0] for shape in shapes} == {3}


def test_a_run_that_cannot_be_continued_is_one_line(base: str, tmp_path: Path) -> None:
    a_run(tmp_path / "sft", pretrained=base, lora=LoraSettings(r=3))
    with pytest.raises(UserError, match="has trained an adapter; add lora to continue it"):
        CausalLMPolicy(pretrained=base, start_from=str(tmp_path / "sft"))
    with pytest.raises(UserError, match=r"does not exist; run the same command with --base sft .*, or set null to"):
        CausalLMPolicy(pretrained=base, start_from=str(tmp_path / "none"))
    (tmp_path / "began").mkdir()
    with pytest.raises(UserError, match="has no model yet"):
        CausalLMPolicy(pretrained=base, start_from=str(tmp_path / "began"))


def test_without_a_run_nothing_changes() -> None:
    lora = LoraSettings(adapter_path="adapter")
    assert start_of(None, pretrained="base", config=None, lora=lora) == ("base", None, lora)
