"""LightningDataModules that yield text, and tokenizers for models that have none yet."""

from ippo_lightning.data.arithmetic import ArithmeticDataModule
from ippo_lightning.data.gsm8k import GSM8KDataModule
from ippo_lightning.data.text_module import Splits, TextDataModule
from ippo_lightning.data.tokenizers import arithmetic_tokenizer, bpe_tokenizer, byte_tokenizer

__all__ = [
    "ArithmeticDataModule",
    "GSM8KDataModule",
    "Splits",
    "TextDataModule",
    "arithmetic_tokenizer",
    "bpe_tokenizer",
    "byte_tokenizer",
]
