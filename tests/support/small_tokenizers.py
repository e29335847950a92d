"""Tokenizers of every common kind, made in memory, with small vocabularies."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ippo_lightning.data import byte_tokenizer

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CHARACTERS = "0123456789+-=?# abcxyz\n"

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""With a default system text, as many instruction models have it."""
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} </s>"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
"""It writes BOS out, puts a space in front of a turn, and refuses a system message."""
THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
"""It opens a tag in the prompt, and leaves the reasoning out of a written turn."""


def wrapped(backend: Tokenizer, *, adds: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with pad, BOS, EOS and unknown token; `adds` is what it puts around a text by itself."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special},
    )
    if adds is not None:
        names = [word for word in adds.split() if word != "$A"]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=adds, special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in dict.fromkeys(names)]
        )
    return tokenizer


def metaspace(scheme: str = "first", *, adds: str | None = None, split: bool = False) -> PreTrainedTokenizerFast:
    """Like SentencePiece: a space before a text is a part of its first token."""
    pieces = [*SPECIAL, "▁", *(c for c in CHARACTERS if c not in " "), "▁a", "12", "▁1"]
    merges = [("▁", "a"), ("1", "2"), ("▁", "1")]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return wrapped(backend, adds=adds)


def merging(*, adds: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose tokens may reach from a prompt into its response: a space belongs to the next number."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL, *alphabet, "Ġ1", "==", "?a", "12"]
    merges = [("Ġ", "1"), ("=", "="), ("?", "a"), ("1", "2")]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend, adds=adds)


def chat_tokenizer(template: str = CHATML, **more: str) -> PreTrainedTokenizerFast:
    """A byte tokenizer with tokens for turns and for reasoning."""
    tokenizer = byte_tokenizer()
    tokens = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<s>", "</s>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens, **more})
    tokenizer.chat_template = template
    return tokenizer
