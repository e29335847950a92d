"""Mean and variance of all that was seen so far, as stable-baselines3 normalises with them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class RunningMoments:
    """Mean and variance over batches, in float64.

    Source: the parallel algorithm of Chan, Golub and LeVeque 1979, as in OpenAI baselines and stable-baselines3.

    Args:
        shape: of one entry.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.mean, self.variance = np.zeros(shape), np.ones(shape)
        # Not 0: the first batch may have one entry, and its variance of 0 would divide.
        self.count = 1e-4

    def update(self, batch: np.ndarray) -> None:
        """Add a batch, shape [entries, *shape]; one without entries changes nothing."""
        if not len(batch):
            return
        mean, variance, count = batch.mean(axis=0), batch.var(axis=0), len(batch)
        total = self.count + count
        difference = mean - self.mean
        spread = self.variance * self.count + variance * count + difference**2 * self.count * count / total
        self.mean = self.mean + difference * count / total
        self.variance, self.count = spread / total, total

    def scale(self) -> np.ndarray:
        """Return the standard deviation, a little above 0."""
        return np.asarray(np.sqrt(self.variance + 1e-8))

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return mean, variance and count."""
        return {"mean": torch.as_tensor(self.mean), "variance": torch.as_tensor(self.variance), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Continue from what `state_dict` returned."""
        self.mean, self.variance = (torch.as_tensor(state[name]).numpy().copy() for name in ("mean", "variance"))
        self.count = float(state["count"])


def normalised(seen: np.ndarray, moments: RunningMoments | None, *, clip: float) -> np.ndarray:
    """Return observations with mean 0 and variance 1, in float32; without moments, as they are.

    Args:
        seen: shape [rows, ...].
        moments: of all observations so far.
        clip: largest absolute value.
    """
    if moments is None:
        return seen
    return np.clip((seen - moments.mean) / moments.scale(), -clip, clip).astype(np.float32)
