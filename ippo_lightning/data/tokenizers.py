"""Tokenizers for new models: each is a `PreTrainedTokenizerFast` and is saved with the model.

None of them adds an EOS; the code that encodes demonstrations does.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ippo_lightning.errors import UserError
from ippo_lightning.tasks.gsm8k.question_files import load_records

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
_ARITHMETIC_SIGNS = "+-*=;#?"


def arithmetic_tokenizer(*, digits_per_token: int = 2) -> PreTrainedTokenizerFast:
    """Return a tokenizer of arithmetic chains: one token per sign and one per group of digits.

    Longer numbers are several tokens, so chains of any numbers can be encoded and decoded. Any other character is
    `<unk>`.

    Args:
        digits_per_token: largest number of digits per token: 1, 2 or 3. With 2, most numbers of the task are one
            token, which makes arithmetic much easier to learn than digit by digit.

    Raises:
        UserError: the number of digits is another one.
    """
    if not 1 <= digits_per_token <= 3:
        raise UserError(f"tokenizer.digits_per_token: {digits_per_token} is out of range; expected 1, 2 or 3")
    numbers = [f"{number:0{width}}" for width in range(1, digits_per_token + 1) for number in range(10**width)]
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, UNKNOWN, *_ARITHMETIC_SIGNS, *numbers))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # From the left, as in the vocabulary: "123" is "12" and "3", never "1" and "23".
    pattern = Regex(f"[0-9]{{1,{digits_per_token}}}|[^0-9]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # the default decoder would put spaces between tokens
    return _wrapped(tokenizer)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, for any text, without training."""
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, *_byte_alphabet()))}
    return _wrapped(_byte_level(Tokenizer(models.BPE(vocab=vocabulary, merges=[]))))


def bpe_tokenizer(
    *, path: str = "openai/gsm8k", config_name: str | None = "main", vocab_size: int = 2048
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on questions and answers; it encodes and decodes any text.

    The same file and size give the same tokenizer.

    Args:
        path: a folder or the id of a data set on the Hub, as in `GSM8KTask`; the training questions are read.
        config_name: of the data set on the Hub.
        vocab_size: number of tokens with the special ones; fewer if the text is too short. At least 258.

    Raises:
        UserError: the size is too small, or a file does not exist or is malformed.
    """
    smallest = len(_byte_alphabet()) + len((PAD, EOS))
    if vocab_size < smallest:
        raise UserError(f"tokenizer.vocab_size: {vocab_size} is too small; expected at least {smallest}, one per byte")
    tokenizer = _byte_level(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        # All bytes, also those that the text lacks: any other text must be encodable.
        initial_alphabet=_byte_alphabet(),
        show_progress=False,
    )
    records = load_records(path, split="train", config_name=config_name, revision=None)
    texts = (text for record in records for text in (record["question"], record["answer"]))
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def _byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())  # sorted: the library gives them in any order


def _byte_level(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    has_unknown = tokenizer.token_to_id(UNKNOWN) is not None
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN if has_unknown else None,
        padding_side="left",  # responses begin right after their prompts
        clean_up_tokenization_spaces=False,  # it would change "1 ." to "1.", and with it what a response contains
    )
