"""Each model of `experiments/models/` in small: its own architecture and special settings, tokens and chat template.

The sizes are small. What makes an architecture special is kept: grouped queries, head widths of their own, sliding
windows short enough to matter, soft caps, tied embeddings, rescaled positions. The chat templates are short ones that
write the same turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

QUESTION, ANSWER = "What is 1+2?", "1+2=3"

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_PLAIN_QUESTION = f"Question:\n{QUESTION}\n\nAnswer:\n"
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _turns(start: str, end: str, *, bos: str = "", model: str = "assistant", middle: str = "\n") -> str:
    """A chat template: each turn has its role between `start` and `middle`, and `end` behind it."""
    role = f"{{{{ '{model}' if m.role == 'assistant' else m.role }}}}"
    return (
        f"{bos}{{% for m in messages %}}{start}{role}{middle}{{{{ m.content | trim }}}}{end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{start}{model}{middle}{{% endif %}}"
    )


def _tokenizer(
    backend: Tokenizer, special: dict[str, str], more: tuple[str, ...], chat: str | None, adds_bos: bool
) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    if adds_bos:
        bos = special["bos_token"]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
    tokenizer.chat_template = chat
    return tokenizer


def _byte_level(special: dict[str, str]) -> Tokenizer:
    """As of Llama 3 and Qwen: a space belongs to the token behind it."""
    pieces = [*dict.fromkeys(special.values()), *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ1", "ĊĊ", "wer"]
    merges = [("Ġ", "1"), ("Ċ", "Ċ")]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(special: dict[str, str]) -> Tokenizer:
    """As of Llama 2, Phi-3 and Gemma: spaces are written as a sign, and unknown characters as bytes."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*dict.fromkeys(special.values()), *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters, "▁1"]
    backend = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)},
            merges=[("▁", "1")],
            byte_fallback=True,
            unk_token=special["unk_token"],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    return backend


@dataclass(frozen=True, kw_only=True)
class Shrunken:
    """One model in small.

    Args:
        config: class of its configuration.
        backend: kind of its tokenizer.
        special: its special tokens by role; one that is left out does not exist.
        prompt: `QUESTION` as the model reads it with the settings of its file.
        end: the token behind an answer.
        fields: what makes the architecture special.
        more: further special tokens.
        ends: tokens that the generation config names as EOS.
        chat: the tokenizer's own chat template.
        adds_bos: whether the tokenizer puts BOS in front of a text by itself.
    """

    config: type[PreTrainedConfig]
    backend: Callable[[dict[str, str]], Tokenizer]
    special: dict[str, str]
    prompt: str
    end: str
    fields: dict[str, Any] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    chat: str | None = None
    adds_bos: bool = False

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return _tokenizer(self.backend(self.special), self.special, self.more, self.chat, self.adds_bos)

    def save(self, folder: Path) -> None:
        """Write the model with random weights and its tokenizer, as the checkpoint on the Hub is laid out."""
        tokenizer = self.tokenizer()
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = self.config(**{**_SIZES, "vocab_size": len(tokenizer) + 3, **ids, **self.fields})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(self.ends or (self.end,)))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


_LLAMA2 = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
_GEMMA_TURNS = ("<start_of_turn>", "<end_of_turn>")
_CHATML = ("<|im_start|>", "<|im_end|>")
_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_LLAMA3_TURNS = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
_QWEN = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}

_QWEN3_SMALL = Shrunken(
    config=Qwen3Config,
    backend=_byte_level,
    special=_QWEN,
    fields={"head_dim": 16, "tie_word_embeddings": True},
    more=_CHATML,
    ends=("<|im_end|>", "<|endoftext|>"),
    chat=_turns("<|im_start|>", "<|im_end|>\n"),
    prompt=f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    end="<|im_end|>",
)
_LLAMA3_SMALL = Shrunken(
    config=LlamaConfig,
    backend=_byte_level,
    special={**_LLAMA3, "eos_token": "<|eot_id|>"},
    fields={"head_dim": 8, "tie_word_embeddings": True, "rope_parameters": _LLAMA3_ROPE},
    more=(*_LLAMA3_TURNS, "<|end_of_text|>"),
    ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    # the date of the day, as in the original
    chat="{{ bos_token }}{{ strftime_now('%d %b %Y') }}" + _turns("<|start_header_id|>", "<|eot_id|>"),
    prompt=f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    end="<|eot_id|>",
    adds_bos=True,
)

SHRUNKEN = {
    "rho-1b": Shrunken(
        config=LlamaConfig,
        backend=_sentence_piece,
        special=_LLAMA2,
        prompt="<s>" + _PLAIN_QUESTION,
        end="</s>",
        adds_bos=True,
    ),
    "gemma-2-2b": Shrunken(
        config=Gemma2Config,
        backend=_sentence_piece,
        special=_GEMMA,
        fields={
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        more=_GEMMA_TURNS,
        prompt="<bos>" + _PLAIN_QUESTION,
        end="<eos>",
        adds_bos=True,
    ),
    "qwen2.5-3b": Shrunken(
        config=Qwen2Config,
        backend=_byte_level,
        special=_QWEN,
        fields={"tie_word_embeddings": True},
        more=_CHATML,
        # the tokenizer has another EOS than the model
        ends=("<|endoftext|>",),
        chat=_turns("<|im_start|>", "<|im_end|>\n"),
        prompt=_PLAIN_QUESTION,
        end="<|endoftext|>",
    ),
    "phi-3-mini": Shrunken(
        config=Phi3Config,
        backend=_sentence_piece,
        special={**_LLAMA2, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        fields={"num_key_value_heads": 4, "sliding_window": 16, "rope_parameters": _PLAIN_ROPE},
        more=("<|assistant|>", "<|user|>", "<|system|>", "<|end|>"),
        ends=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        chat=_turns("<|", "<|end|>\n", middle="|>\n") + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        prompt=f"<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n",
        end="<|end|>",
    ),
    "llama-3-8b": Shrunken(
        config=LlamaConfig,
        backend=_byte_level,
        special=_LLAMA3,
        fields={"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        more=_LLAMA3_TURNS,
        prompt="<|begin_of_text|>" + _PLAIN_QUESTION,
        end="<|end_of_text|>",
        adds_bos=True,
    ),
    "qwen3-0.6b": _QWEN3_SMALL,
    "qwen3-1.7b": _QWEN3_SMALL,
    "qwen3-4b": _QWEN3_SMALL,
    "llama-3.2-1b": _LLAMA3_SMALL,
    "llama-3.2-3b": _LLAMA3_SMALL,
    "gemma-3-1b": Shrunken(
        config=Gemma3TextConfig,
        backend=_sentence_piece,
        special=_GEMMA,
        fields={
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        more=_GEMMA_TURNS,
        ends=("<eos>", "<end_of_turn>"),
        chat=_turns("<start_of_turn>", "<end_of_turn>\n", bos="{{ bos_token }}", model="model"),
        prompt=f"<bos><start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        adds_bos=True,
    ),
    "smollm2-135m": Shrunken(
        config=LlamaConfig,
        backend=_byte_level,
        special={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        fields={"num_key_value_heads": 1, "tie_word_embeddings": True},
        # with a system text of its own, as in the original
        chat="<|im_start|>system\nYou help.<|im_end|>\n" + _turns("<|im_start|>", "<|im_end|>\n"),
        prompt=f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
    ),
}
"""By the name of the model's file."""
