"""LightningDataModules that yield text, and tokenizers for models that have none yet."""

from ippo_lightning.data.arithmetic import ArithmeticDataModule
from ippo_lightning.data.tokenizers import arithmetic_tokenizer, byte_tokenizer

__all__ = ["ArithmeticDataModule", "arithmetic_tokenizer", "byte_tokenizer"]
