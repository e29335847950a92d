"""The log-probs of the very distribution that `generate` draws each token from, noted step by step."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class DrawnLogProbs(LogitsProcessor):
    """Notes the log-prob of each token that `generate` draws; it changes no logits and ends no row.

    A step calls it as a logits processor before the draw, and its `noter` as a stopping criterion after the draw. So
    one step's logits are kept at a time, and not those of all steps, as `output_logits` keeps them.

    Args:
        temperature: divides the logits.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._logits: Tensor | None = None
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the logits of this step, [rows, vocab]; transformers divides by the temperature after this call."""
        self._logits = scores
        return scores

    def note(self, input_ids: Tensor) -> None:
        """Note the log-probs of the last column of `input_ids` [rows, tokens], which was just drawn."""
        assert self._logits is not None, "generate processes the logits before it draws"
        log_probs = (self._logits.float() / self.temperature).log_softmax(dim=-1)
        self._steps.append(log_probs.gather(1, input_ids[:, -1:].to(log_probs.device)))
        self._logits = None

    def log_probs(self) -> Tensor:
        """Return [rows, steps] nats."""
        return torch.cat(self._steps, dim=1)


class NoteDrawn(StoppingCriteria):
    """Calls `DrawnLogProbs.note` after each draw.

    Args:
        log_probs: the notes.
    """

    def __init__(self, log_probs: DrawnLogProbs) -> None:
        self.notes = log_probs

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Return which rows are done, [rows] bool: none of them."""
        self.notes.note(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
