"""An episode in pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class RenderedEpisode:
    """Evenly spaced frames of one episode, with what a reader wants to know about it."""

    frames: Mapping[int, np.ndarray]
    """By the number of steps before it: uint8, shape [height, width, 3], all of one size; the first and the last one
    are always there."""
    episode_return: float
    """Sum of the rewards, in units of the environment."""
    length: int
    """Steps that were made."""
    is_over: bool
    """Whether the episode ended by itself or by its own limit."""
    frames_per_second: float
    """Of the environment at its own speed, one frame per step."""
