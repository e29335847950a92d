"""What a reward is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Reward = Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float] | Tensor]
"""Called as `reward(prompts, responses, examples)`, each with one entry per episode. Returns one finite number per
episode: a sequence, a NumPy array or a tensor of shape [rows] or [rows, 1]."""
