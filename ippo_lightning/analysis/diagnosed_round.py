"""An iteration with scores, both advantages and, for responses, texts and labels of the grader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ippo_lightning.analysis.diagnosis import Control, Diagnosis, Records, control_of, diagnose, fractions, random_rows
from ippo_lightning.analysis.grid_map import Arrow, GridMap, arrows_of, map_of
from ippo_lightning.analysis.monte_carlo import (
    Baseline,
    MonteCarlo,
    monte_carlo_of_responses,
    monte_carlo_of_transitions,
)
from ippo_lightning.analysis.record_scores import RecordScores, TargetName, score_records
from ippo_lightning.analysis.repeated import RepeatedRounds
from ippo_lightning.errors import UserError
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.records import ControlEpisodes, Episodes, TextEpisodes
from ippo_lightning.records.kept_rounds import KeptRound
from ippo_lightning.tasks import call_grader, label_text

_DEFAULT_RECORDS, _MOST_OF_BUFFER = 100, 0.05
_DEFAULT_RESPONSES, _MOST_OF_RESPONSES = 20, 0.25


@dataclass(frozen=True)
class Share:
    """How often a label occurs at both ends, among random records, and among all; fractions."""

    label: str
    lowest: float
    highest: float
    every: float
    control: Control


@dataclass(frozen=True, kw_only=True)
class DiagnosedRound:
    """A kept iteration, its scores, and what they point at. What is left out is in no column."""

    iteration: int
    episodes: Episodes
    """On the CPU."""
    scores: RecordScores
    monte_carlo: MonteCarlo
    found: Diagnosis
    gamma: float
    positions: np.ndarray
    """[rows] int64, in the kept iteration."""
    weights: np.ndarray
    """[rows] of the run's update; 0 for a record that it dropped."""
    trains_policy: bool
    num_broken: int
    """Records without a finite score."""
    num_unfinished: int
    """Records of an episode that the end of the buffer cuts, which are left out."""
    grid: GridMap | None = None
    labels: tuple[str, ...] = ()
    """[rows] of the grader; empty without one."""
    shares: tuple[Share, ...] = ()

    @property
    def noun(self) -> str:
        """What a record is called, in the singular."""
        return "response" if isinstance(self.episodes, TextEpisodes) else "record"

    def arrows(self, rows: np.ndarray) -> list[Arrow]:
        """Return records as arrows on the map.

        Args:
            rows: positions.
        """
        assert self.grid is not None, "the caller has looked"
        episodes, records = self.episodes, self.found.records
        assert isinstance(episodes, ControlEpisodes), "only these have a map"
        return arrows_of(
            self.grid,
            observations=episodes.observations[:, 0].numpy()[rows],
            actions=episodes.actions[:, 0].numpy()[rows],
            estimates=records.estimates[rows],
            monte_carlo=records.monte_carlo[rows],
        )


def diagnose_round(
    rounds: RepeatedRounds,
    round_: KeptRound,
    *,
    count: int | None = None,
    target: TargetName = "auto",
    baseline: Baseline = "auto",
    seed: int = 0,
) -> DiagnosedRound:
    """Score an iteration, and compare the advantages of the records at both ends with those by Monte Carlo.

    Args:
        rounds: of the run.
        round_: one of its kept iterations, on the CPU.
        count: records at each end; None for 100 in environments, 20 responses, and fewer of a small buffer.
        target: see `score_records`.
        baseline: see `monte_carlo_of_transitions`.
        seed: of the random records, and of the resampling behind intervals.

    Raises:
        UserError: too few records, or a setting that does not fit them.
    """
    gamma = float(getattr(rounds.module.advantages, "gamma", 1.0))
    # of all rows: the returns of those with a score run through those without
    monte_carlo = _monte_carlo(round_.episodes, gamma=gamma, baseline=baseline)
    scores = score_records(rounds, round_, target=target)
    rows = (scores.finite & torch.from_numpy(monte_carlo.is_known)).nonzero().flatten()
    episodes, at = round_.episodes.select(rows), rows.numpy()
    records = Records(
        scores=scores.scores[rows].double().numpy(),
        estimates=masked_row_mean(values=episodes.advantages, mask=episodes.mask).double().numpy(),
        monte_carlo=monte_carlo.advantages[at],
        clusters=monte_carlo.clusters[at],
    )
    count = _count(count, len(records), is_text=isinstance(episodes, TextEpisodes))
    found = diagnose(records, count=count, seed=seed)
    labels = _labels(getattr(rounds.module, "grader", None), episodes)
    return DiagnosedRound(
        iteration=round_.iteration,
        episodes=episodes,
        scores=scores,
        monte_carlo=monte_carlo,
        found=found,
        gamma=gamma,
        positions=at,
        weights=round_.weights[rows].numpy(),
        trains_policy=round_.trains_policy,
        num_broken=int((~scores.finite).sum()),
        num_unfinished=int((~monte_carlo.is_known).sum()),
        grid=map_of(rounds.module.rollouts.settings) if isinstance(episodes, ControlEpisodes) else None,
        labels=labels,
        shares=_shares(labels, found, seed=seed) if labels else (),
    )


def _monte_carlo(episodes: Episodes, *, gamma: float, baseline: Baseline) -> MonteCarlo:
    if isinstance(episodes, ControlEpisodes):
        return monte_carlo_of_transitions(episodes, gamma=gamma, baseline=baseline)
    assert isinstance(episodes, TextEpisodes), "a kept round has no other rows"
    if baseline != "auto":
        raise UserError(
            f"baseline: {baseline} is for environments, and the rows are responses, which are compared with the "
            "other responses to their prompt; expected auto"
        )
    return monte_carlo_of_responses(episodes)


def _count(count: int | None, total: int, *, is_text: bool) -> int:
    if total < 2:
        raise UserError(
            f"iteration: it has {total} records of finished episodes with a score; expected at least 2, or, for the "
            "others, baseline: critic"
        )
    if count is None:
        most, fraction = (_DEFAULT_RESPONSES, _MOST_OF_RESPONSES) if is_text else (_DEFAULT_RECORDS, _MOST_OF_BUFFER)
        return max(1, min(most, int(fraction * total)))
    if 2 * count > total:
        raise UserError(f"records: {count} at each end of {total} records; expected at most {total // 2}")
    return count


def _labels(grader: Any, episodes: Episodes) -> tuple[str, ...]:
    """Return what the grader calls each response: its label, or correct and wrong if it has none."""
    if grader is None or not isinstance(episodes, TextEpisodes):
        return ()
    texts = zip(episodes.prompts, episodes.responses, episodes.examples, strict=True)
    grades = [call_grader(grader, *text) for text in texts]
    return tuple(
        ("correct" if grade.correct else "wrong") if grade.label is None else label_text(grade.label)
        for grade in grades
    )


def _shares(labels: tuple[str, ...], found: Diagnosis, *, seed: int) -> tuple[Share, ...]:
    drawn = [fractions(labels, rows) for rows in random_rows(len(labels), count=len(found.lowest), seed=seed)]
    lowest, highest, every = (fractions(labels, rows) for rows in (found.lowest, found.highest, range(len(labels))))
    shares = []
    for label in sorted(every, key=lambda name: -every[name]):
        control = control_of([one[label] for one in drawn])
        assert control is not None, "each draw has a fraction of each label"
        shares.append(Share(label, lowest[label], highest[label], every[label], control))
    return tuple(shares)


def lengths_of(diagnosed: DiagnosedRound) -> dict[str, float]:
    """Return the mean number of tokens of the responses at both ends, and of all.

    Args:
        diagnosed: of responses.
    """
    lengths: torch.Tensor = diagnosed.episodes.lengths.double()
    found = diagnosed.found
    ends = {"lowest": found.lowest, "highest": found.highest}
    means = {name: float(lengths[torch.from_numpy(rows.copy())].mean()) for name, rows in ends.items()}
    return {**means, "all": float(lengths.mean())}
