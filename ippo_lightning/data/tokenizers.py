"""Tokenizers made on the spot, real `PreTrainedTokenizerFast` ones that are saved next to the model."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
_ARITHMETIC_CHARACTERS = "0123456789+-*=;#?"


def arithmetic_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a character of arithmetic chains; anything else is `<unk>`."""
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, UNKNOWN, *_ARITHMETIC_CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte, for any text, without training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, *alphabet))}
    return _wrapped(_byte_level(Tokenizer(models.BPE(vocab=vocabulary, merges=[]))))


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
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
