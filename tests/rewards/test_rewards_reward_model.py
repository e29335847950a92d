"""A reward model gives what its classifier gives one text alone, and is no part of the trained module."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from small_episodes import make_episodes
from small_tokenizers import CHATML, wrapped
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from training_parts import tiny_module
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import HeldReward, RewardModel
from ippo_lightning.tasks import Conversation

PROMPTS = ["12+3=", "1+1=", "99-12=", "a"]
RESPONSES = ["15", "2 because 1+1=2", "87", ""]
TEXTS = (PROMPTS, RESPONSES, [{}] * 4)
PADDING = 1e-5
"""Of float32 logits near 1: a padded pass adds in another order."""


def tokenizer(**special: str):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<s>", "</s>", "<unk>", *alphabet]
    backend = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend, **special)


def save(
    folder: Path,
    *,
    labels: int = 1,
    pad_is_eos: bool = False,
    template: str | None = None,
    kind="llama",
    adds_bos: bool = False,
) -> str:
    words = tokenizer(**({"pad_token": "</s>"} if pad_is_eos else {}))
    if adds_bos:
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    words.chat_template = template
    words.padding_side = "left"  # as policies have it; a reward model pads by itself
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    common = {"vocab_size": len(words), "num_labels": labels, "max_position_embeddings": 128}
    torch.manual_seed(3)
    if kind == "roberta":
        model = RobertaForSequenceClassification(RobertaConfig(**sizes, **common, pad_token_id=1))
    elif kind == "bert":
        model = BertForSequenceClassification(BertConfig(**sizes, **common, pad_token_id=0))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, **common, pad_token_id=None, eos_token_id=2))
    for weight in model.parameters():  # large, so that texts differ
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def alone(reward: RewardModel, prompt: str, response: str) -> float:
    """The head of one text without padding, by transformers."""
    ids = torch.tensor([reward.text.tokenizer(reward.text._text(prompt, response), add_special_tokens=False).input_ids])
    with torch.no_grad():
        return float(reward.model(input_ids=ids).logits[0, reward.output])


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("template", [None, CHATML + "{{ eos_token }}"], ids=["plain", "chat"])
def test_a_padded_batch_has_the_rewards_of_each_text_alone(tmp_path: Path, pad_is_eos, kind, template) -> None:
    folder = save(tmp_path, pad_is_eos=pad_is_eos and kind == "llama", template=template, kind=kind)
    reward = RewardModel(folder, batch_size=3)
    found = HeldReward(reward)(*TEXTS)
    rows = [place for place in range(4) if template or PROMPTS[place] + RESPONSES[place]]
    expected = [alone(reward, PROMPTS[row], RESPONSES[row]) for row in rows]
    assert found[rows].tolist() == pytest.approx(expected, abs=PADDING)
    assert len({round(value, 4) for value in expected}) > 2, "the texts differ in their rewards"


def test_padding_is_no_token_that_a_text_ends_with(tmp_path: Path) -> None:
    folder = save(tmp_path, pad_is_eos=True, template=CHATML + "{{ eos_token }}")
    text = RewardModel(folder).text
    rows, _ = text.encode(PROMPTS, RESPONSES)
    assert {row[-1] for row in rows} == {2}, "each text ends with EOS"
    ids, mask, pad_id = text.padded(rows)
    assert pad_id != 2
    assert bool((ids[mask == 0] == pad_id).all())


def test_special_tokens_stand_once(tmp_path: Path) -> None:
    for name, template in (
        ("plain", None),
        ("chat", "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"),
    ):
        folder = save(tmp_path / name, template=template, adds_bos=True)
        rows, _ = RewardModel(folder).text.encode(PROMPTS, RESPONSES)
        assert [row.count(1) for row in rows] == [1] * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_have_the_type_that_was_asked_for(tmp_path: Path, dtype) -> None:
    model = RewardModel(save(tmp_path), dtype=dtype).model
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}


def test_the_positions_of_roberta_begin_behind_its_padding(tmp_path: Path) -> None:
    reward = RewardModel(save(tmp_path, kind="roberta"))
    assert reward.max_length == 126
    with pytest.warns(UserWarning, match="longer than 126 tokens"):
        found = HeldReward(reward)(["1+1=" * 60], ["2"], [{}])
    assert bool(torch.isfinite(found).all())


def test_rows_and_size_of_the_batch_change_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path)
    first = HeldReward(RewardModel(folder, batch_size=1))(*TEXTS)
    second = HeldReward(RewardModel(folder, batch_size=64))(PROMPTS[::-1], RESPONSES[::-1], [{}] * 4)
    assert first.tolist() == pytest.approx(second.tolist()[::-1], abs=PADDING)


def test_a_conversation_is_read_turn_by_turn(tmp_path: Path) -> None:
    reward = RewardModel(save(tmp_path, template=CHATML))
    turns = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]
    assert reward.text._text(Conversation("1+1=", turns), "2") == (
        "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    )


def test_a_template_is_that_of_the_model_or_the_users_or_none(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", template=CHATML)
    assert RewardModel(folder, chat_template=False).text._text("a", "b") == "ab"
    own = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    assert RewardModel(folder, chat_template=own).text._text("a", "b") == "u:a;a:b;"
    (tmp_path / "own.jinja").write_text(own, encoding="utf-8")
    assert RewardModel(folder, chat_template=str(tmp_path / "own.jinja")).text._text("a", "b") == "u:a;a:b;"


def test_of_a_long_text_the_end_is_read_and_one_line_warns(tmp_path: Path) -> None:
    reward = RewardModel(save(tmp_path), max_length=8)
    with pytest.warns(UserWarning, match=r"reward\.max_length: 1 of 2 texts are longer than 8 tokens"):
        found = reward(["1" * 50, "2"], ["=1+2", "=1"], [{}] * 2)
    assert float(found[0]) == pytest.approx(alone(reward, "1111", "=1+2"), abs=PADDING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(["1" * 50], ["=1+2"], [{}])


def test_memory_that_runs_out_halves_a_pass(tmp_path: Path, monkeypatch, memory_error: Exception) -> None:
    reward = RewardModel(save(tmp_path), batch_size=4)
    expected, score, sizes = HeldReward(reward)(*TEXTS), reward._score, []

    def limited(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise memory_error
        return score(rows)

    monkeypatch.setattr(reward, "_score", limited)
    with pytest.warns(UserWarning, match=r"reward\.batch_size: a pass of 4 rows does not fit"):
        assert HeldReward(reward)(*TEXTS).tolist() == pytest.approx(expected.tolist(), abs=PADDING)
    assert sizes == [4, 2, 2]


def test_it_is_no_part_of_the_module_and_stays_in_eval_mode_without_gradients(tmp_path: Path) -> None:
    module = tiny_module(reward=RewardModel(save(tmp_path)))
    model = module.reward.reward.model
    module.train().double()
    ours = {id(parameter) for parameter in model.parameters()}
    assert not ours & {id(parameter) for parameter in module.parameters()}
    assert not any("score.weight" in name for name in module.state_dict())
    assert not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_it_moves_to_the_policys_device_unless_it_has_one(tmp_path: Path) -> None:
    folder = save(tmp_path)
    texts = (["a"], ["b"], [{}])
    episodes = make_episodes([1], [1])
    for device, moved in ((None, ["cpu"]), ("cpu", ["cpu"])):
        reward, seen = RewardModel(folder, device=device), []
        own = reward.model.to
        reward.model.to = lambda device, seen=seen, own=own: (seen.append(str(device)), own(device))[1]
        reward(*texts, episodes=episodes)
        assert seen == moved
    with pytest.raises(UserError, match=r"reward\.device: 'gpu' is no device"):
        RewardModel(folder, device="gpu")


def test_one_output_of_several_is_chosen_by_number_or_label(tmp_path: Path) -> None:
    folder = save(tmp_path, labels=3)
    by_number, by_label = RewardModel(folder, output=2), RewardModel(folder, output="LABEL_2")
    assert by_number(*TEXTS).tolist() == by_label(*TEXTS).tolist()
    assert by_number(*TEXTS).tolist() != RewardModel(folder, output=0)(*TEXTS).tolist()
    with pytest.raises(UserError, match=r"reward\.output: None chooses none of 3 outputs; expected one of 0 \(LAB"):
        RewardModel(folder)
    with pytest.raises(UserError, match=r"reward\.output: 3 chooses none of 3"):
        RewardModel(folder, output=3)


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    words = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(words))).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=r"reward\.pretrained: .* lacks score\.weight; expected a trained sequence"):
        RewardModel(str(tmp_path))
    assert torch.equal(state, torch.get_rng_state()), "the numbers of the run stay"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pretrained": "./nowhere"}, r"reward\.pretrained: no folder '\./nowhere'"),
        (
            {"pretrained": "owner/nowhere"},
            r"reward\.pretrained: cannot load 'owner/nowhere': there is no such folder, ",
        ),
        ({"batch_size": 0}, r"reward\.batch_size: 0 is out of range"),
        ({"dtype": "half"}, r"reward\.dtype: 'half' is unknown; expected one of float32, bfloat16, float16"),
        ({"quantization": "nf3"}, r"reward\.quantization: 'nf3' is unknown; expected one of nf4, fp4, int8"),
        ({"max_length": 1000}, r"reward\.max_length: 1000 is more than the 128 tokens that the model reads"),
        ({"chat_template": True}, r"reward\.chat_template: true, and the tokenizer has no template"),
        ({"chat_template": "nowhere.jinja"}, r"reward\.chat_template: no file 'nowhere\.jinja'"),
    ],
)
def test_a_setting_that_is_wrong_is_one_line(tmp_path: Path, changes: dict, said: str) -> None:
    arguments = {"pretrained": save(tmp_path), **changes}
    with pytest.raises(UserError, match=said) as caught:
        RewardModel(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_four_bit_weights_give_nearly_the_same_rewards(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = save(tmp_path)
    full, four = (RewardModel(folder, quantization=kind)(*TEXTS) for kind in (None, "nf4"))
    assert four.isfinite().all()
    assert torch.nn.functional.cosine_similarity(full, four, dim=0) > 0.7
