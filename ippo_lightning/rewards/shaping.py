"""Rewards that look at the form of a response, not at its answer: format, length, and whether it stopped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records import Example, TextEpisodes


class FormatReward:
    """1.0 for a response in which each marker stands exactly once, in their order; else 0.0.

    Plain texts are searched and no regular expression, which hostile text can keep busy for hours. The time is linear
    in the length of a response.

    Args:
        markers: for instance `[<think>, </think>, <answer>, </answer>]`.
        at_start: whether a response must begin with the first marker; space before it does not count.
        at_end: whether a response must end with the last marker; space behind it does not count.

    Raises:
        UserError: no markers, or an empty one.

    Example:
        >>> FormatReward(["<a>", "</a>"], at_end=True)(["?"] * 3, ["<a>4</a>", "<a>4</a>!", "4</a><a>"], [{}] * 3)
        [1.0, 0.0, 0.0]
    """

    def __init__(self, markers: list[str], *, at_start: bool = False, at_end: bool = False) -> None:
        if isinstance(markers, str) or not markers or not all(isinstance(text, str) and text for text in markers):
            raise UserError(f"reward.markers: {markers!r:.60} is wrong; expected a list of texts that are not empty")
        self.markers = tuple(markers)
        self.at_start, self.at_end = at_start, at_end

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """Return 1.0 or 0.0 per response.

        Args:
            prompts: ignored.
            responses: one per episode.
            examples: ignored.
        """
        return [float(self._fits(response)) for response in responses]

    def _fits(self, response: str) -> bool:
        text, end = response.strip(), 0
        if self.at_start and not text.startswith(self.markers[0]):
            return False
        if self.at_end and not text.endswith(self.markers[-1]):
            return False
        for marker in self.markers:
            place = text.find(marker)
            if place < end or text.find(marker, place + len(marker)) >= 0:
                return False
            end = place + len(marker)
        return True


class LengthPenalty:
    """Minus the tokens of a response, in units of `tokens`: -1.0 for a response of `tokens` tokens.

    Args:
        tokens: at least 1.

    Raises:
        UserError: `tokens` is below 1; in a call, there is no rollout.
    """

    needs_rollout = True

    def __init__(self, tokens: int) -> None:
        require_range("reward.tokens", tokens, at_least=1, integer=True)
        self.tokens = tokens

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        examples: Sequence[Example],
        *,
        episodes: TextEpisodes | None = None,
    ) -> Tensor:
        """Return one number <= 0 per episode, shape [rows]; what `episodes` contains counts, and not the texts."""
        return -_of_rollout(episodes, "LengthPenalty").lengths.double() / self.tokens


class OverlongPenalty:
    """0 up to a length, then falling in a straight line to -1 at the length limit: DAPO's soft overlong punishment.

    With n tokens, limit L and buffer B: 0 for n <= L - B; (L - B - n) / B for L - B < n <= L; -1 for n > L.
    Source: Yu et al. 2025, arXiv 2503.14476, eq. 13. Same as it.

    Args:
        max_tokens: L, usually `sampling.max_new_tokens`.
        buffer_tokens: B, at least 1 and at most L.

    Raises:
        UserError: a number is out of its range; in a call, there is no rollout.
    """

    needs_rollout = True

    def __init__(self, max_tokens: int, buffer_tokens: int) -> None:
        require_range("reward.max_tokens", max_tokens, at_least=1, integer=True)
        require_range("reward.buffer_tokens", buffer_tokens, at_least=1, at_most=max_tokens, integer=True)
        self.max_tokens, self.buffer_tokens = max_tokens, buffer_tokens

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        examples: Sequence[Example],
        *,
        episodes: TextEpisodes | None = None,
    ) -> Tensor:
        """Return one number in [-1, 0] per episode, shape [rows]; see `LengthPenalty`."""
        lengths = _of_rollout(episodes, "OverlongPenalty").lengths.double()
        return ((self.max_tokens - self.buffer_tokens - lengths) / self.buffer_tokens).clamp(min=-1.0, max=0.0)


class MissingEOSPenalty:
    """-1.0 for a response that was cut by the length limit, else 0.0.

    `model.missing_eos_penalty` subtracts the same from any reward, and is not a part of it in the log: use one of both.
    """

    needs_rollout = True

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        examples: Sequence[Example],
        *,
        episodes: TextEpisodes | None = None,
    ) -> Tensor:
        """Return -1.0 or 0.0 per episode, shape [rows]; see `LengthPenalty`.

        Raises:
            UserError: there is no rollout.
        """
        return -_of_rollout(episodes, "MissingEOSPenalty").truncated.to(torch.float64)


def _of_rollout(episodes: TextEpisodes | None, name: str) -> TextEpisodes:
    if episodes is None:
        raise UserError(f"reward: {name} counts the tokens of a rollout, and was called with texts only; use it in PPO")
    return episodes
