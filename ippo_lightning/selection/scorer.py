"""Scores of rows along the gradient of a target, in passes of bounded size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import any_rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.influence import EpisodeScores, NonFiniteScoreError, score_episodes
from ippo_lightning.records import Episodes, passes
from ippo_lightning.selection.buffer_view import BufferView
from ippo_lightning.selection.module_interface import ModuleInterface
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.target_gradients import TargetGradients

_CHECKED = 8
"""Rows whose scores are compared with plain autograd in every iteration."""


class Scored(NamedTuple):
    """The scores of this rank's rows."""

    scores: Tensor
    """Shape [rows]."""
    group_scores: Tensor
    """Shape [groups, rows]; of no group if groups are not needed."""
    by_parameter: dict[str, Tensor]
    """Parameter name to its part of the scores, shape [rows]; empty for methods that cannot tell."""
    broken: Tensor
    """Shape [rows], bool, True if the score is NaN or infinite; it is then 0 in `scores`."""


class Scorer:
    """Scores rows along the gradients of a target.

    Args:
        settings: see `ScoringSettings`.
        interface: gives the project's losses.
        skips_nonfinite: whether a row whose score is NaN or infinite is left out; else it is an error.
    """

    def __init__(self, settings: ScoringSettings, *, interface: ModuleInterface, skips_nonfinite: bool = False) -> None:
        self.settings = settings
        self.interface = interface
        self.skips_nonfinite = skips_nonfinite
        self._max_tokens = settings.max_tokens

    def score(self, pl_module: Any, episodes: Episodes | BufferView, gradients: TargetGradients) -> Scored:
        """Score the rows; if memory runs out, again in passes half as large.

        Args:
            pl_module: what the losses are of.
            episodes: of this rank.
            gradients: of the target.

        Raises:
            FloatingPointError: a score is NaN or infinite and may not be skipped; the row is named.
        """
        try:
            return self._score(pl_module, episodes, gradients)
        except torch.OutOfMemoryError:
            # sharded ranks make their passes together: one of them cannot divide its rows again alone
            if self._max_tokens <= int(episodes.cost().max()) or is_sharded(pl_module):
                raise
        # outside of the except block, whose traceback keeps the tensors of the failed pass alive; the smaller size
        # stays, because the next iteration would run out of memory again
        self._max_tokens //= 2
        warnings.warn(
            f"InfluenceFilter.scoring.max_tokens: the device's memory is too small, continuing with {self._max_tokens}",
            stacklevel=2,
        )
        return self.score(pl_module, episodes, gradients)

    def _score(self, pl_module: Any, episodes: Episodes | BufferView, gradients: TargetGradients) -> Scored:
        """Score what can be scored; the rest is named, and left out or an error."""
        device = episodes.device
        together = is_sharded(pl_module)
        rows, broken = torch.arange(len(episodes), device=device), torch.zeros(len(episodes), dtype=torch.bool)
        while True:
            # the first pass is made twice, the second time by plain autograd as a check: keep it small
            made = list(
                passes(episodes.cost()[rows], module=pl_module, max_tokens=self._max_tokens, first_rows=_CHECKED)
            )
            chosen = [rows[one.rows] for one in made]
            # rows[:0], because torch cannot join an empty list, and a rank may have no row
            places = torch.cat([rows[:0], *(rows[one.rows] for one in made if one.is_real)])
            lost = torch.empty(0, dtype=torch.long)
            try:
                result = self._scored(pl_module, episodes, chosen, gradients)
            except NonFiniteScoreError as error:
                # unique, because a repeated pass names its rows a second time
                lost = torch.cat(chosen)[list(error.positions)].unique().cpu()
            # sharded ranks repeat the scoring together, also those whose own rows are all right
            if not (any_rank(len(lost) > 0, device=device) if together else len(lost) > 0):
                break
            self._leave_out(episodes, lost, is_all=len(lost) == len(rows))
            broken[lost] = True
            rows = rows[~broken.to(device)[rows]]

        def of_all(part: Tensor) -> Tensor:
            filled = part.new_zeros((*part.shape[:-1], len(episodes)))
            # repeated passes come last, so the real ones are a prefix
            filled[..., places.to(part.device)] = part[..., : len(places)]
            return filled

        scores = of_all(result.scores)
        parts = {name: of_all(part[0]) for name, part in result.by_parameter.items()}
        return Scored(scores[0], scores[1:], parts, broken.to(scores.device))

    def _leave_out(self, episodes: Episodes | BufferView, lost: Tensor, *, is_all: bool) -> None:
        """Warn of the rows without a finite score, or raise if they may not be skipped."""
        named = "NaN or infinity in the score of an episode of another rank"
        if len(lost):
            numbers = ", ".join(str(int(row)) for row in lost[:3])
            named = f"NaN or infinity in the score of {episodes.row_name} {numbers} ({episodes.describe(int(lost[0]))})"
        if not self.skips_nonfinite or is_all:
            raise FloatingPointError(f"InfluenceFilter: {named}")
        if len(lost):
            warnings.warn(f"InfluenceFilter: {named}; left out", stacklevel=5)

    def _scored(
        self, pl_module: Any, episodes: Episodes | BufferView, chosen: Sequence[Tensor], gradients: TargetGradients
    ) -> EpisodeScores:
        known = None
        if self.settings.method == "finite_difference" and chosen:
            # with the stored losses the difference is one-sided and saves a forward; without them it is two-sided
            known = self.interface.rollout_losses(pl_module, episodes.select(chosen[0][:1]))
        return score_episodes(
            pl_module,
            self.interface.episode_losses,
            (episodes.select(rows) for rows in chosen),
            [gradients.mean, *gradients.groups],
            method=self.settings.method,
            normalise=self.settings.normalise,
            lengths=_lengths_of if self.settings.normalise == "length" else None,
            known_losses=known,
        )


def _lengths_of(part: Any) -> Tensor:
    return part.lengths if isinstance(part, Episodes) else BufferView(part).lengths
