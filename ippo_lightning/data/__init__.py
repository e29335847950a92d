"""The LightningDataModule of all tasks, and tokenizers for models that have none yet."""

from ippo_lightning.data.text_module import Splits, TextDataModule
from ippo_lightning.data.tokenizers import arithmetic_tokenizer, bpe_tokenizer, byte_tokenizer

__all__ = [
    "Splits",
    "TextDataModule",
    "arithmetic_tokenizer",
    "bpe_tokenizer",
    "byte_tokenizer",
]
