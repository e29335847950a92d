"""How the influence filter scores: the direction, when it is taken anew, batches by tokens, and how far to trust it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, any_rank, rank, world_size
from ippo_lightning.distributed.dtensor import full_tensor, is_sharded
from ippo_lightning.distributed.lockstep import in_step
from ippo_lightning.errors import UserError
from ippo_lightning.influence import (
    EpisodeScores,
    Method,
    NonFiniteScoreError,
    Normalisation,
    TargetGroups,
    mean_direction,
    precondition,
    score_episodes,
    select_blocks,
    target_gradient_groups,
)
from ippo_lightning.records import Episodes
from ippo_lightning.selection.buffer_view import Columns
from ippo_lightning.selection.module_interface import Attachment

_CHECKED = 8
"""Episodes of a buffer whose scores are compared with plain autograd in every iteration."""


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """How episodes are scored.

    Args:
        method: see `ippo_lightning.influence.influence_scores`; `hooks` is exact and as dear as one forward and
            backward, `finite_difference` is one forward where the module tells the present losses.
        normalise: `none` as in the paper, `cosine`, or `length`, which divides by the number of response tokens.
        adam_aware: scale the direction by 1 / (sqrt(v) + eps) of the optimizer's state, which makes the score the
            first-order effect of an Adam step. Of a plain gradient step before the first one.
        include: patterns of parameter names that count, for example `*layers.3*`; null for all.
        exclude: patterns of parameter names that do not count.
        refresh_every_n_iterations: the validation gradient is taken anew every so many iterations.
        max_tokens: of a scoring pass, padding included; halved where the device's memory is too small.
        health_every_n_iterations: how often the demonstrations are split into groups, to see how far groups agree; 0
            for never. Costs one contraction a group.
        health_groups: into how many groups.

    Raises:
        UserError: a number out of its range.
    """

    method: Method = "hooks"
    normalise: Normalisation = "none"
    adam_aware: bool = False
    include: list[str] | None = None
    exclude: list[str] = field(default_factory=list)
    refresh_every_n_iterations: int = 1
    max_tokens: int = 16384
    health_every_n_iterations: int = 10
    health_groups: int = 8

    def __post_init__(self) -> None:
        lowest = {"refresh_every_n_iterations": 1, "max_tokens": 1, "health_every_n_iterations": 0, "health_groups": 2}
        for name, bound in lowest.items():
            if getattr(self, name) < bound:
                value = getattr(self, name)
                raise UserError(
                    f"InfluenceFilter.scoring.{name}: {value} is out of range; expected an integer >= {bound}"
                )


class Direction(NamedTuple):
    """The validation gradient at some parameters."""

    mean: dict[str, Tensor]
    """Over all demonstrations."""
    groups: list[dict[str, Tensor]]
    """Over each group of them; empty where nobody asked."""


class Scored(NamedTuple):
    """The scores of this rank's episodes."""

    scores: Tensor
    """Shape [rows]."""
    group_scores: Tensor
    """Shape [groups, rows]; no rows where nobody asked."""
    by_parameter: dict[str, Tensor]
    """Parameter name to its part of the scores, shape [rows]; empty for methods that cannot tell."""
    broken: Tensor
    """Shape [rows], bool, True where the score is NaN or infinite; it then stands as 0."""


class Scorer:
    """Takes the direction when it is due, and scores episodes along it.

    Args:
        settings: see `ScoringSettings`.
        attachment: the project's losses.
        needs_groups: whether groups are wanted in every iteration.
        skips_nonfinite: whether an episode whose score is NaN or infinite is left out; else it is an error.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        *,
        attachment: Attachment,
        needs_groups: bool = False,
        skips_nonfinite: bool = False,
    ) -> None:
        self.settings = settings
        self.attachment = attachment
        self.needs_groups = needs_groups
        self.skips_nonfinite = skips_nonfinite
        self.raw: Direction | None = None
        """The validation gradient as last taken, before any scaling."""
        self._max_tokens = settings.max_tokens

    def direction(self, pl_module: Any, batches: Sequence[Any], *, iteration: int) -> Direction:
        """Return the direction to score along, taken anew where it is due.

        Args:
            pl_module: has `validation_loss(batch)`.
            batches: demonstrations.
            iteration: counted from 0.
        """
        wants_groups = self.needs_groups or _is_due(iteration, self.settings.health_every_n_iterations)
        stale = self.raw is None or _is_due(iteration, self.settings.refresh_every_n_iterations)
        if stale or (wants_groups and not (self.raw and self.raw.groups)):
            self.raw = self._taken(pl_module, batches, num_groups=self.settings.health_groups if wants_groups else 1)
        assert self.raw is not None, "taken just now"
        groups = [self._prepared(pl_module, entry) for entry in self.raw.groups] if wants_groups else []
        return Direction(self._prepared(pl_module, self.raw.mean), groups)

    def score(self, pl_module: Any, episodes: Episodes | Columns, direction: Direction) -> Scored:
        """Score the episodes; where memory runs out, once more in batches half as large.

        Args:
            pl_module: what the attachment's losses are of.
            episodes: of this rank.
            direction: what `direction` returned.

        Raises:
            FloatingPointError: a score is NaN or infinite and is not to be skipped; the episode is named.
        """
        try:
            return self._score(pl_module, episodes, direction)
        except torch.OutOfMemoryError:
            # ranks that go together cannot divide their work anew one by one
            if self._max_tokens <= int(episodes.cost().max()) or is_sharded(pl_module):
                raise
        self._max_tokens //= 2
        warnings.warn(
            f"InfluenceFilter.scoring.max_tokens: the device's memory is too small, going on with {self._max_tokens}",
            stacklevel=2,
        )
        return self.score(pl_module, episodes, direction)

    def state_dict(self) -> dict[str, Any]:
        """Return the direction where later iterations will use it again, else nothing."""
        if self.raw is None or self.settings.refresh_every_n_iterations == 1:
            return {}
        mean, *groups = (
            {name: full_tensor(block) for name, block in entry.items()} for entry in [self.raw.mean, *self.raw.groups]
        )
        return {"mean": mean, "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.raw = Direction(dict(state["mean"]), list(state["groups"])) if state else None

    def _taken(self, pl_module: Any, batches: Sequence[Any], *, num_groups: int) -> Direction:
        """Take the gradient of each group of demonstrations; ranks share the work where there is enough of it."""
        ranks = world_size()
        parts, weights = _divided(batches, num_groups * ranks)
        is_shared = ranks > 1 and len(parts) >= num_groups * ranks
        if not is_shared:
            parts, weights = _divided(batches, num_groups)
        num_groups = min(num_groups, max(len(parts), 1))
        # part b is of group b modulo num_groups; within each group, the ranks take turns
        mine = [number for number in range(len(parts)) if not is_shared or number // num_groups % ranks == rank()]
        together = is_sharded(pl_module)
        passes = list(in_step(mine, module=pl_module))
        taken = target_gradient_groups(
            pl_module,
            self.attachment.validation_loss,
            [parts[number] for number, _ in passes],
            num_groups=num_groups,
            weights=[weights[number] if is_mine else 0.0 for number, is_mine in passes],
        )
        if together:
            taken = taken._replace(directions=_full_where_small(pl_module, taken.directions))
        elif is_shared:
            taken = _averaged(taken)
        mean = mean_direction(taken.directions, weights=taken.weights)
        return Direction(mean, taken.directions if num_groups > 1 else [])

    def _prepared(self, pl_module: Any, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        chosen = dict(direction)
        if self.settings.include is not None or self.settings.exclude:
            chosen = select_blocks(chosen, include=self.settings.include, exclude=self.settings.exclude)
        if self.settings.adam_aware:
            chosen = precondition(chosen, model=pl_module, optimizer=pl_module.optimizers())
        return chosen

    def _score(self, pl_module: Any, episodes: Episodes | Columns, direction: Direction) -> Scored:
        """Score what can be scored; what cannot is named, and left out or an error."""
        device = episodes.device
        together = is_sharded(pl_module)
        rows, broken = torch.arange(len(episodes), device=device), torch.zeros(len(episodes), dtype=torch.bool)
        while True:
            # the first batch is scored twice, the second time by plain autograd as a check: keep it small
            lengths = episodes.cost()[rows]
            order = batches_by_tokens(lengths, max_tokens=self._max_tokens, first_episodes=_CHECKED)
            batches = [rows[part] for part in order]
            passes = [batch for batch, _ in in_step(batches, module=pl_module)]
            lost = torch.empty(0, dtype=torch.long)
            try:
                result = self._scored(pl_module, episodes, passes, direction)
            except NonFiniteScoreError as error:
                lost = torch.cat(passes)[list(error.positions)].unique().cpu()
            if not (any_rank(len(lost) > 0, device=device) if together else len(lost) > 0):
                break
            self._leave_out(episodes, lost, is_all=len(lost) == len(rows))
            broken[lost] = True
            rows = rows[~broken.to(device)[rows]]
        places = torch.cat(batches) if batches else rows

        def of_all(part: Tensor) -> Tensor:
            filled = part.new_zeros((*part.shape[:-1], len(episodes)))
            filled[..., places.to(part.device)] = part[..., : len(places)]
            return filled

        scores = of_all(result.scores)
        parts = {name: of_all(part[0]) for name, part in result.by_parameter.items()}
        return Scored(scores[0], scores[1:], parts, broken.to(scores.device))

    def _leave_out(self, episodes: Episodes | Columns, lost: Tensor, *, is_all: bool) -> None:
        """Warn of the episodes without a finite score, or raise where they may not be skipped."""
        named = "NaN or infinity in the score of an episode of another rank"
        if len(lost):
            numbers = ", ".join(str(int(row)) for row in lost[:3])
            named = f"NaN or infinity in the score of episode {numbers}{_prompt_of(episodes, int(lost[0]))}"
        if not self.skips_nonfinite or is_all:
            raise FloatingPointError(f"InfluenceFilter: {named}")
        if len(lost):
            warnings.warn(f"InfluenceFilter: {named}; left out", stacklevel=5)

    def _scored(
        self, pl_module: Any, episodes: Episodes | Columns, batches: Sequence[Tensor], direction: Direction
    ) -> EpisodeScores:
        known = getattr(pl_module, "rollout_losses", None)
        return score_episodes(
            pl_module,
            self.attachment.episode_losses,
            (episodes.select(rows) for rows in batches),
            [direction.mean, *direction.groups],
            method=self.settings.method,
            normalise=self.settings.normalise,
            lengths=_lengths_of if self.settings.normalise == "length" else None,
            known_losses=known if self.settings.method == "finite_difference" else None,
        )


def _lengths_of(part: Any) -> Tensor:
    return part.lengths if isinstance(part, Episodes) else Columns(part).lengths


def _prompt_of(episodes: Episodes | Columns, row: int) -> str:
    return f" ({episodes.describe(row)})" if isinstance(episodes, Episodes) else ""


def _full_where_small(pl_module: Any, directions: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Gather directions that take no more memory than a rank's part of the model: those of adapters, as a rule.

    Whole, they need not be gathered again for each module of each pass. The others stay divided as the parameters are.
    """
    held = sum(parameter.numel() * parameter.element_size() for parameter in pl_module.parameters()) / world_size()
    size = sum(block.numel() * block.element_size() for entry in directions for block in entry.values())
    return [
        {name: full_tensor(block) if size <= held else block for name, block in entry.items()} for entry in directions
    ]


def _averaged(taken: TargetGroups) -> TargetGroups:
    """Average each group's gradient over the ranks, by the weight of what each has seen."""
    device = next(iter(taken.directions[0].values())).device
    totals = all_reduce_sum(torch.tensor(taken.weights, dtype=torch.float64, device=device)).tolist()
    directions = [
        {name: all_reduce_sum(block * (weight / total)) for name, block in direction.items()}
        for direction, weight, total in zip(taken.directions, taken.weights, totals, strict=True)
    ]
    return TargetGroups(directions, totals)


def batches_by_tokens(lengths: Tensor, *, max_tokens: int, first_episodes: int | None = None) -> list[Tensor]:
    """Divide episodes into batches of neighbours in length that stay, padded, below a number of tokens.

    Args:
        lengths: tokens of each episode, shape [rows], int64.
        max_tokens: episodes of a batch times its longest; a single longer episode is a batch of its own.
        first_episodes: at most so many in the first batch.

    Returns:
        Positions of each batch's episodes, shortest first; every episode is in one batch.

    Example:
        >>> [batch.tolist() for batch in batches_by_tokens(torch.tensor([3, 9, 2, 4]), max_tokens=8)]
        [[2, 0], [3], [1]]
    """
    order = lengths.argsort(stable=True)
    batches: list[list[int]] = []
    for position, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        is_full = len(batches) == 1 and len(batches[0]) == first_episodes
        if not batches or is_full or (len(batches[-1]) + 1) * length > max_tokens:
            batches.append([])
        batches[-1].append(position)
    return [torch.tensor(batch, device=lengths.device) for batch in batches]


def _divided(batches: Sequence[Any], num_groups: int) -> tuple[list[Any], list[float]]:
    """Cut demonstrations so that there is a batch for each group; weigh each by its number of demonstrations."""
    pieces = math.ceil(num_groups / max(len(batches), 1))
    parts = [part for batch in batches for part in _cut(batch, pieces)]
    return parts, [float(_size(part) or 1) for part in parts]


def _cut(batch: Any, pieces: int) -> list[Any]:
    """Cut a mapping of columns into pieces of neighbouring rows; what is no such mapping stays whole."""
    size = _size(batch)
    if size is None or pieces < 2:
        return [batch]
    bounds = [round(number * size / pieces) for number in range(pieces + 1)]
    spans = [slice(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]
    return [{name: column[span] for name, column in batch.items()} for span in spans]


def _size(batch: Any) -> int | None:
    """Return the number of rows of a mapping of columns, None for anything else."""
    if not isinstance(batch, Mapping) or not batch:
        return None
    columns = list(batch.values())
    if not all(isinstance(column, (list, tuple, Tensor)) for column in columns):
        return None
    sizes = {len(column) for column in columns}
    return sizes.pop() if len(sizes) == 1 else None


def _is_due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
