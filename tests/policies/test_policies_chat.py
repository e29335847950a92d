"""Prompts have the ids of transformers' own `apply_chat_template`, and a demonstration follows its prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.policies.chat import with_template
from ippo_lightning.policies.tokenization import TextFormat
from ippo_lightning.tasks import Conversation
from tests.support.small_tokenizers import CHATML, INST, THINK, chat_tokenizer

TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3+4?"},
]
ENDS = {CHATML: "<|im_end|>", INST: "</s>", THINK: "<|im_end|>"}


def formatted(template: str = CHATML, *, system_prompt: str | None = None) -> TextFormat:
    tokenizer = chat_tokenizer(template, eos_token=ENDS.get(template, "<|im_end|>"), bos_token="<s>")
    return TextFormat(tokenizer=tokenizer, chat_template=True, system_prompt=system_prompt)


def text_of(form: TextFormat, ids: list[int]) -> str:
    text = form.tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("template", [CHATML, INST, THINK])
@pytest.mark.parametrize("prompt", ["7+5?", Conversation("And 3+4?", TURNS)], ids=["one turn", "several turns"])
def test_a_prompt_has_the_ids_of_transformers_own_template(template: str, prompt: str) -> None:
    form = formatted(template)
    messages = list(getattr(prompt, "messages", [{"role": "user", "content": prompt}]))
    expected = form.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert form.prompt_row(prompt, "prompt") == expected


@pytest.mark.parametrize(
    ("system_prompt", "begins"),
    [
        (None, "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n"),
        ("Be short.", "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n"),
        ("", "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n"),
    ],
)
def test_the_system_prompt_takes_the_place_of_the_templates_default(system_prompt: str | None, begins: str) -> None:
    form = formatted(system_prompt=system_prompt)
    assert text_of(form, form.prompt_row("7+5?", "prompt")).startswith(begins)


def test_a_system_message_of_the_row_comes_before_the_setting() -> None:
    form = formatted(system_prompt="Be short.")
    prompt = Conversation("7+5?", [{"role": "system", "content": "Own."}, {"role": "user", "content": "7+5?"}])
    assert text_of(form, form.prompt_row(prompt, "prompt")).startswith("<|im_start|>system\nOwn.<|im_end|>")


def test_a_template_of_the_users_own_leaves_the_default_system_text_out(tmp_path: Path) -> None:
    bare = CHATML.partition("{% endif %}")[2]
    (tmp_path / "bare.jinja").write_text(bare, encoding="utf-8")
    original = chat_tokenizer()
    for given in (bare, str(tmp_path / "bare.jinja")):
        tokenizer = with_template(original, given)
        form = TextFormat(tokenizer=tokenizer, chat_template=True)
        assert text_of(form, form.prompt_row("7+5?", "prompt")) == (
            "<|im_start|>user\n7+5?<|im_end|>\n<|im_start|>assistant\n"
        )
    assert original.chat_template == CHATML


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "12<|im_end|>"),  # the line break behind the turn is never sampled
        (INST, " 12 </s>"),  # the template's own spaces
        (THINK, "12<|im_end|>"),
    ],
)
def test_a_demonstration_ends_where_the_template_ends_a_turn(template: str, expected: str) -> None:
    form = formatted(template)
    prompt_ids, response_ids = form.demonstration_row("7+5?", "12", "response", "prompt")
    assert prompt_ids == form.prompt_row("7+5?", "prompt")
    assert text_of(form, response_ids) == expected


def test_a_template_that_shortens_a_turn_does_not_shorten_a_demonstration() -> None:
    form = formatted(THINK)
    prompt_ids, response_ids = form.demonstration_row("7+5?", "7+5=12</think>12", "response", "prompt")
    assert text_of(form, prompt_ids).endswith("<|im_start|>assistant\n<think>")
    assert text_of(form, response_ids) == "7+5=12</think>12<|im_end|>"


def test_a_template_without_an_end_of_turn_gets_eos() -> None:
    form = formatted("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert form.demonstration_row("7+5?", "12", "response", "prompt")[1][-1] == form.tokenizer.eos_token_id


def test_the_bos_of_a_template_and_of_the_tokenizer_are_one() -> None:
    form = formatted(INST)
    bos = form.tokenizer.bos_token_id
    form.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    ids = form.prompt_row("7+5?", "prompt")
    assert (ids[0], ids.count(bos)) == (bos, 1)
    assert form.demonstration_row("7+5?", "12", "response", "prompt")[0] == ids


def test_a_policy_samples_from_the_template_and_saves_it(
    make_policy: Callable[..., CausalLMPolicy], tmp_path: Path
) -> None:
    policy = make_policy(
        tokenizer=chat_tokenizer(), chat_template=CHATML + " ", fields={"max_position_embeddings": 256}
    )
    prompt_ids, _ = policy.text.encode_prompts(["7+5?"], max_length=200)
    assert policy.tokenizer.decode(prompt_ids[0]).endswith("7+5?<|im_end|>\n<|im_start|>assistant\n ")
    folder = policy.save_pretrained(tmp_path / "saved")["model"]
    again = CausalLMPolicy(pretrained=str(folder), chat_template=True)
    assert again.text.encode_prompts(["7+5?"], max_length=200)[0].tolist() == prompt_ids.tolist()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chat_template": True}, "policy.chat_template: true, and the tokenizer has no template"),
        ({"chat_template": "missing.jinja"}, "policy.chat_template: no file 'missing.jinja'"),
        ({"system_prompt": "Be short."}, "policy.system_prompt: has no effect without a template"),
        ({"special_tokens": "drop"}, "policy.special_tokens: 'drop' is unknown"),
    ],
)
def test_wrong_settings_are_one_line(
    make_policy: Callable[..., CausalLMPolicy], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make_policy(**settings)
    assert "\n" not in str(caught.value)


def test_messages_without_a_template_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"prompts\[0\]: consists of messages; set policy.chat_template: true"):
        TextFormat(tokenizer=tokenizer).encode_prompts([Conversation("1?", TURNS)], max_length=64)


def test_what_a_template_refuses_is_one_line() -> None:
    with pytest.raises(UserError, match=r"refuses messages of system, user; .*only user and assistant") as caught:
        formatted(INST, system_prompt="Be short.").prompt_row("7+5?", "prompt")
    assert "\n" not in str(caught.value)
