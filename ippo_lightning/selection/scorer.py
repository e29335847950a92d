"""Scores of rows along the gradient of a target, in passes of bounded size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_max, all_reduce_sum, any_rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.influence import EpisodeScores, NonFiniteScoreError, score_episodes
from ippo_lightning.records import Episodes, passes
from ippo_lightning.records.out_of_memory import MEMORY_ERRORS, is_out_of_memory
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection.buffer_view import BufferView
from ippo_lightning.selection.module_interface import ModuleInterface
from ippo_lightning.selection.own_terms import ScoresOfPasses, lengths_of, own_products, without_own
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.target_gradients import TargetGradients

_FIRST_ROWS = 8
"""Rows of the first pass; stored losses are compared with a forward of these."""
_CHECKED = 2
"""Rows whose scores are compared with plain autograd."""
_CHECK_COST = 0.03
"""Most that these rows may cost, as a fraction of all scoring: with few rows, only every n-th iteration is checked."""
_HEALTH_COST = 0.05
"""The same for the scores along groups of demonstrations."""
_FEWEST_SAMPLED = 8
"""Rows that are scored along groups, even if they cost more: fractions of fewer rows say nothing."""


class Scored(NamedTuple):
    """The scores of this rank's rows."""

    scores: Tensor
    """Shape [rows]."""
    group_scores: Tensor
    """Shape [groups, rows]; of no group if groups are not needed. NaN for rows outside of the sample, see `Scorer`."""
    by_parameter: dict[str, Tensor]
    """Parameter name to its part of the scores, shape [rows]; empty for methods that cannot tell."""
    broken: Tensor
    """Shape [rows], bool, True if the score is NaN or infinite; it is then 0 in `scores`."""


class Scorer:
    """Scores rows along the gradients of a target.

    Two additions are kept cheap: scores along groups of demonstrations, which are for the log, are those of a sample of
    rows; and a few rows are compared with plain autograd, not in every iteration if there are few rows.

    Args:
        settings: see `ScoringSettings`.
        interface: gives the project's losses.
        skips_nonfinite: whether a row whose score is NaN or infinite is left out; else it is an error.
        all_groups: whether every row is scored along the groups, because the decision needs it.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        *,
        interface: ModuleInterface,
        skips_nonfinite: bool = False,
        all_groups: bool = False,
    ) -> None:
        self.settings = settings
        self.all_groups = all_groups
        self._has_checked = False
        self.interface = interface
        self.skips_nonfinite = skips_nonfinite
        self.size = PassSize(settings.max_tokens, field="InfluenceFilter.scoring.max_tokens")

    def state_dict(self) -> dict[str, Any]:
        """Return the size of passes, and whether scores were compared with plain autograd."""
        return {"size": self.size.state_dict(), "has_checked": self._has_checked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.size.load_state_dict(state["size"])
        # Otherwise a resumed run would check its first pass, which an unbroken one does not. In a sharded model that
        # changes the last bits of its scores.
        self._has_checked = bool(state["has_checked"])

    def score(
        self, pl_module: Any, episodes: Episodes | BufferView, gradients: TargetGradients, *, iteration: int = 0
    ) -> Scored:
        """Score the rows; a pass for which memory runs out is made again, half as large.

        Args:
            pl_module: what the losses are of.
            episodes: of this rank.
            gradients: of the target.
            iteration: counted from 0.

        Raises:
            FloatingPointError: a score is NaN or infinite and may not be skipped; the row is named.
            UserError: a single row does not fit in the device's memory.
        """
        size = len(episodes)
        together = is_sharded(pl_module)
        if together:  # the ranks make all passes together
            size = all_reduce_max(size, device=episodes.device)
        is_checked = self.settings.method in ("hooks", "forward") and self._check_is_due(size, iteration)
        if is_checked and not together:
            self._check(pl_module, episodes, gradients)
        every = torch.arange(len(episodes), device=episodes.device)
        directions = [gradients.mean, *(gradients.groups if self.all_groups else [])]
        # A pass through a sharded model gathers all parameters: there the first pass is checked, instead of two rows in
        # a pass of their own.
        along = partial(self._scored, pl_module, episodes, directions=directions)
        scores, parts, broken = self._finite_scores(
            pl_module, episodes, every, along, checks_first=is_checked and together
        )
        if gradients.own is not None:
            scores, parts, lost = self._without_own(pl_module, episodes, every[~broken], gradients, (scores, parts))
            broken |= lost
        self._has_checked |= is_checked and together
        groups = scores[1:]
        if gradients.groups and not self.all_groups:
            sample = self._sample(every[~broken], size=size, num_groups=len(gradients.groups))
            along = partial(self._scored, pl_module, episodes, directions=gradients.groups)
            found, _, _ = self._finite_scores(pl_module, episodes, sample, along)
            groups = torch.full_like(found, torch.nan)
            groups[:, sample] = found[:, sample]
        return Scored(scores[0], groups, {name: part[0] for name, part in parts.items()}, broken.to(scores.device))

    def _check_is_due(self, size: int, iteration: int) -> bool:
        # A check costs a forward and two backwards instead of one, in a pass too small to be fast: as measured, three
        # times what its rows cost in a large pass.
        every = math.ceil(3 * _CHECKED / (_CHECK_COST * max(size, 1)))
        return not self._has_checked or iteration % every == 0

    def _check(self, pl_module: Any, episodes: Episodes | BufferView, gradients: TargetGradients) -> None:
        """Compare the scores of a few rows of middle cost with plain autograd."""
        order = episodes.cost().argsort(stable=True)
        middle = max(len(order) - _CHECKED, 0) // 2
        rows = order[middle : middle + _CHECKED]
        try:
            along = [gradients.mean]
            self._scored(pl_module, episodes, [rows] if len(rows) else [], directions=along, checksum_batches=1)
            self._has_checked = True
        except NonFiniteScoreError:
            return  # the scores of all rows name them
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            # The check takes more memory than a score: the graph stays for a second backward. If a row does not fit
            # even without a check, its score reports that.
            warnings.warn("InfluenceFilter: too little memory to compare two scores with plain autograd", stacklevel=5)

    def _sample(self, rows: Tensor, *, size: int, num_groups: int) -> Tensor:
        """Choose evenly spaced rows for the groups, as many as their share of the cost allows."""
        # With hooks, a row costs a forward, a backward and a contraction per group, at most four times its score; any
        # other method makes its passes once per group. What is due every n-th iteration may cost n times as much then.
        cost = 4 if self.settings.method == "hooks" else num_groups
        allowed = int(_HEALTH_COST * max(self.settings.health_every_n_iterations, 1) * size / cost)
        count = min(max(allowed, _FEWEST_SAMPLED), len(rows))
        return rows[torch.arange(count, device=rows.device) * len(rows) // max(count, 1)]

    def _finite_scores(
        self,
        pl_module: Any,
        episodes: Episodes | BufferView,
        rows: Tensor,
        scored: ScoresOfPasses,
        *,
        checks_first: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Score what can be scored; the rest is named, and left out or an error.

        Returns:
            Scores [directions, rows of the episodes] and their parts by parameter, 0 for what was not scored; and which
            of the episodes' rows were left out, on the CPU.
        """
        device = episodes.device
        together = is_sharded(pl_module)
        broken = torch.zeros(len(episodes), dtype=torch.bool)
        while True:
            lost = torch.empty(0, dtype=torch.long)
            try:
                places, result = self._pass_by_pass(pl_module, episodes, rows, scored, checks_first)
            except _LostRowsError as error:
                lost = error.rows
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

        return of_all(result.scores), {name: of_all(part) for name, part in result.by_parameter.items()}, broken

    def _pass_by_pass(
        self,
        pl_module: Any,
        episodes: Episodes | BufferView,
        rows: Tensor,
        scored: ScoresOfPasses,
        checks_first: bool,
    ) -> tuple[Tensor, EpisodeScores]:
        """Score rows in passes that fit; return the rows in the order of their scores, and the scores."""
        costs = episodes.cost()
        # The parameters move once for all passes of a difference, and sharded ranks make their passes together: there
        # all passes are one call. A difference goes on from the pass that failed, by `_halves`; sharded ranks cannot.
        at_once = self.settings.method == "finite_difference" or is_sharded(pl_module)
        done: list[EpisodeScores] = []
        # rows[:0], because torch cannot join an empty list, and a rank may have no row
        places, rest = rows[:0], rows
        while len(rest) or not done:
            first_rows = None if len(places) else _FIRST_ROWS
            made = list(passes(costs[rest], module=pl_module, max_tokens=self.size.tokens, first_rows=first_rows))[
                : None if at_once else 1
            ]
            chosen = [rest[one.rows] for one in made]
            largest = max((int(costs[one].max()) for one in chosen), default=0)
            tokens = max((len(one) * int(costs[one].max()) for one in chosen), default=0)
            try:
                with self.size.measuring(episodes.device, tokens=tokens):
                    checked = int(checks_first and not done)
                    found = scored(chosen, checksum_batches=checked)
            except NonFiniteScoreError as error:
                # unique, because a repeated pass names its rows a second time
                raise _LostRowsError(torch.cat(chosen)[list(error.positions)].unique().cpu()) from error
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                found = None
            if found is None:
                # outside of the except block, whose traceback keeps the tensors of the failed pass alive
                self.size.shrink(tokens, largest=largest, can_retry=not is_sharded(pl_module), what=episodes.row_name)
                continue
            done.append(found)
            real = torch.cat([rest[:0], *(rest[one.rows] for one in made if one.is_real)])
            places = torch.cat([places, real])
            rest = rest[~torch.isin(rest, real)]
        return places, _joined(done)

    def _without_own(
        self,
        pl_module: Any,
        episodes: Episodes | BufferView,
        rows: Tensor,
        gradients: TargetGradients,
        found: tuple[Tensor, dict[str, Tensor]],
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return scores [1, rows] and their parts without the rows' own part in the target; and the broken rows."""
        own, (scores, parts) = gradients.own, found
        assert own is not None, "the caller has looked"
        rows = rows[own.weights.to(rows.device)[rows] > 0]
        of_passes = partial(
            own_products, pl_module, episodes, own, gradients.metric, settings=self.settings, interface=self.interface
        )
        products, product_parts, broken = self._finite_scores(pl_module, episodes, rows, of_passes)
        # together, before any rank goes on alone
        left_of = partial(without_own, weights=own.weights, total=all_reduce_sum(own.weights.sum()))
        left = {name: left_of(part, product_parts.get(name, 0 * part)) for name, part in parts.items()}
        scores = left_of(scores, products)
        scores[:, broken.to(scores.device)] = 0.0
        return scores, left, broken

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
        self,
        pl_module: Any,
        episodes: Episodes | BufferView,
        chosen: Sequence[Tensor],
        *,
        directions: Sequence[dict[str, Tensor]],
        checksum_batches: int,
    ) -> EpisodeScores:
        stored = None
        by_difference = self.settings.method == "finite_difference"
        if by_difference and chosen:
            # with the stored losses the difference is one-sided and saves a forward; without them it is two-sided
            stored = self.interface.rollout_losses(pl_module, episodes.select(chosen[0][:1]))
        costs = episodes.cost()

        def halves(rows: Tensor) -> Sequence[Tensor]:
            largest = int(costs[rows].max())
            self.size.shrink(len(rows) * largest, largest=largest, what=episodes.row_name)
            return rows.tensor_split(2)

        return score_episodes(
            pl_module,
            lambda module, rows: self.interface.episode_losses(
                module, episodes.select(rows), for_difference=by_difference
            ),
            chosen,
            directions,
            method=self.settings.method,
            normalise=self.settings.normalise,
            lengths=(lambda rows: lengths_of(episodes.select(rows))) if self.settings.normalise == "length" else None,
            known_losses=None if stored is None else lambda rows: stored(episodes.select(rows)),
            checksum_batches=checksum_batches,
            split=None if is_sharded(pl_module) else halves,
        )


class _LostRowsError(Exception):
    """Some rows have no finite score."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows


def _joined(results: Sequence[EpisodeScores]) -> EpisodeScores:
    """Join the scores of passes."""
    if len(results) == 1:
        return results[0]
    names = {name: None for result in results for name in result.by_parameter}
    parts = {
        name: torch.cat([result.by_parameter.get(name, torch.zeros_like(result.scores)) for result in results], dim=1)
        for name in names
    }
    return EpisodeScores(torch.cat([result.scores for result in results], dim=1), parts)
