"""A line for a run whose rewards are all equal at the beginning: they tell no good response from a bad one."""

from __future__ import annotations

import torch

from ippo_lightning.records import TextEpisodes

FIRST_ITERATIONS = 3
"""After so many iterations the line is written, once."""
_FEWEST = 8  # rewards; fewer may be equal by chance
_REASONS = {
    False: (
        "Where right answers are rare at the start, this is normal and passes. Else the usual reasons are a reward or "
        "answer_kind that does not read the form in which the model answers, max_new_tokens ({truncated:.0%} of the "
        "responses are cut off), or a model that needs SFT first"
    ),
    True: (
        "Where the model is good at the task already, this is normal. Else the usual reasons are a reward that does "
        "not look at the response, or problems that are too easy"
    ),
}


class EqualRewards:
    """Looks at the rewards of the first iterations of a run, on one rank."""

    def __init__(self) -> None:
        self._seen = 0
        self._rewards: list[torch.Tensor] = []
        self._truncated: list[torch.Tensor] = []

    def line(self, episodes: object, *, iteration: int) -> str | None:
        """Return the line if it is due, else None.

        Args:
            episodes: of the newest iteration; only those of texts are looked at, because in an environment equal
                rewards of each step are common.
            iteration: iterations done, this one included. A run that is resumed later gets no line.
        """
        if iteration > FIRST_ITERATIONS or not isinstance(episodes, TextEpisodes):
            return None
        self._seen += 1
        self._rewards.append(episodes.outcome_rewards.detach().float().cpu())
        self._truncated.append(episodes.truncated.detach().float().cpu())
        if self._seen < FIRST_ITERATIONS:
            return None
        rewards, truncated = torch.cat(self._rewards), torch.cat(self._truncated)
        if len(rewards) < _FEWEST or not bool((rewards == rewards[0]).all()):
            return None
        value = float(rewards[0])
        return (
            f"warning: all {len(rewards)} rewards of the first {FIRST_ITERATIONS} iterations are {value:g}, so they "
            f"tell no good response from a bad one. {_REASONS[value > 0].format(truncated=float(truncated.mean()))}."
        )
