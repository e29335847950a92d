"""Tokenizers give back the text they were given, also after they were saved, and cost nothing to make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ippo_lightning.data import arithmetic_tokenizer, bpe_tokenizer, byte_tokenizer
from ippo_lightning.errors import UserError
from ippo_lightning.tasks import ArithmeticTask

ARITHMETIC, BYTES = arithmetic_tokenizer(), byte_tokenizer()
SPECIAL = ("<pad>", "<eos>", "<unk>")

any_text = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not any(s in text for s in SPECIAL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("questions")
    records = [
        {"question": f"Anna has {number} apples and buys {number}.", "answer": f"So {2 * number}.\n#### {2 * number}"}
        for number in range(200)
    ]
    (path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def trained(folder: str) -> PreTrainedTokenizerBase:
    return bpe_tokenizer(path=folder, vocab_size=300)


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


@given(st.text("0123456789+-*=;#?", max_size=60))
def test_arithmetic_text_comes_back(text: str) -> None:
    for tokenizer in (ARITHMETIC, arithmetic_tokenizer(digits_per_token=1), arithmetic_tokenizer(digits_per_token=3)):
        assert tokenizer.decode(ids(tokenizer, text)) == text


@pytest.mark.parametrize(("digits_per_token", "num_tokens"), [(1, 8), (2, 7), (3, 6)])
def test_a_token_has_at_most_so_many_digits(digits_per_token: int, num_tokens: int) -> None:
    assert len(ids(arithmetic_tokenizer(digits_per_token=digits_per_token), "7+123=-9")) == num_tokens


@pytest.mark.parametrize("digits_per_token", [0, 4])
def test_other_numbers_of_digits_are_refused(digits_per_token: int) -> None:
    with pytest.raises(UserError, match="digits_per_token"):
        arithmetic_tokenizer(digits_per_token=digits_per_token)


@given(any_text)
def test_any_text_comes_back_from_its_bytes(text: str) -> None:
    assert BYTES.decode(ids(BYTES, text)) == text
    assert len(ids(BYTES, text)) == len(text.encode())


@given(text=any_text)
def test_any_text_comes_back_from_a_trained_tokenizer(trained: PreTrainedTokenizerBase, text: str) -> None:
    assert trained.decode(ids(trained, text)) == text


def test_every_demonstration_is_known_to_the_arithmetic_tokenizer() -> None:
    task = ArithmeticTask(num_train=300, operators="+-*")
    for row in task.rows("demonstrations"):
        assert ARITHMETIC.unk_token_id not in ids(ARITHMETIC, row["prompt"] + row["response"])


def test_the_arithmetic_vocabulary_is_minimal_and_the_rest_is_unknown() -> None:
    assert len(ARITHMETIC) == 7 + 10 + 100 + 3
    assert ids(ARITHMETIC, "1 x") == [ARITHMETIC.convert_tokens_to_ids("1"), *[ARITHMETIC.unk_token_id] * 2]


def test_the_bytes_are_all_there_and_nothing_else() -> None:
    assert len(BYTES) == 256 + 2


def test_training_shortens_what_it_has_seen(trained: PreTrainedTokenizerBase) -> None:
    text = "Anna has 12 apples and buys 12."
    assert len(ids(trained, text)) < len(text) / 2
    assert len(trained) == 300


def test_training_twice_gives_the_same_tokenizer(folder: str, trained: PreTrainedTokenizerBase) -> None:
    again = bpe_tokenizer(path=folder, vocab_size=300)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


@pytest.mark.parametrize("size", [-1, 257])
def test_a_vocabulary_smaller_than_the_bytes_is_the_users_mistake(folder: str, size: int) -> None:
    with pytest.raises(UserError, match=rf"^tokenizer\.vocab_size: {size} is too small; expected at least 258"):
        bpe_tokenizer(path=folder, vocab_size=size)


def test_the_smallest_vocabulary_is_that_of_the_bytes(folder: str) -> None:
    assert len(bpe_tokenizer(path=folder, vocab_size=258)) == 258


def test_a_missing_folder_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"'/missing' is not a folder"):
        bpe_tokenizer(path="/missing")


@pytest.fixture(params=["arithmetic", "bytes", "trained"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made = {"arithmetic": ARITHMETIC, "bytes": BYTES}
    return made.get(request.param) or request.getfixturevalue("trained")


def test_saving_and_loading_changes_nothing(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "7+12-5?7+12=19;19-5=14;#14"
    assert ids(loaded, text) == ids(tokenizer, text)
    assert loaded.decode(ids(loaded, text)) == text
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == ("<pad>", "<eos>", "left")


def test_padding_is_not_the_end_and_nothing_is_added(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"
    assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(ids(tokenizer, "7+12-5?"))


def test_special_tokens_are_left_out_on_demand(tokenizer: PreTrainedTokenizerBase) -> None:
    row = [tokenizer.pad_token_id, *ids(tokenizer, "#14"), tokenizer.eos_token_id]
    assert tokenizer.decode(row, skip_special_tokens=True) == "#14"
