"""The data modules of texts and of environments, and tokenizers for models that have none yet."""

from ippo_lightning.data.control import ControlDataModule
from ippo_lightning.data.text_module import Splits, TextDataModule
from ippo_lightning.data.tokenizers import arithmetic_tokenizer, bpe_tokenizer, byte_tokenizer

__all__ = [
    "ControlDataModule",
    "Splits",
    "TextDataModule",
    "arithmetic_tokenizer",
    "bpe_tokenizer",
    "byte_tokenizer",
]
