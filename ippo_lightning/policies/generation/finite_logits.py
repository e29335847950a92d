"""Logits that are NaN or infinite: noted while sampling, and reported once at its end."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class FiniteLogits(LogitsProcessor):
    """Notes rows whose logits contain NaN or +infinity, and gives these rows equal logits.

    A draw from NaN ends a process on a GPU: the error of its kernel makes the device unusable. The most likely token of
    NaN is drawn without any error. With equal logits the draw goes on, and its rows are reported afterwards.
    """

    def __init__(self) -> None:
        self._broken: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits of this step, [rows, vocab], unchanged in every row that is finite."""
        # The maximum is NaN or infinite if an entry is; -inf alone is a token that cannot be drawn, which is allowed.
        broken = ~torch.isfinite(scores.amax(dim=-1))
        self._broken = broken if self._broken is None else self._broken | broken
        # No branch on the values: it would wait for the device at every token.
        return scores.masked_fill(broken[:, None], 0.0)

    def num_broken(self) -> int:
        """Return the number of rows that had such logits in any step."""
        return 0 if self._broken is None else int(self._broken.sum())
