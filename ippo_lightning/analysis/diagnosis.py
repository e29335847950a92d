"""Do the records with the lowest scores have a wrong advantage? Pure numbers, with a random control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats

ENOUGH = 10
"""Records with a sign by Monte Carlo, or clusters, below which nothing is concluded."""
_DRAWS = 1000
_BINS = 20
_FEWEST_IN_BIN = 5
_LEVEL = 0.95
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records of an iteration as columns, each of shape [rows], float64."""

    scores: np.ndarray
    estimates: np.ndarray
    """The advantages that the update used: those of the critic, or of a group's baseline."""
    monte_carlo: np.ndarray
    """The advantages from the rewards of the buffer; 0 for a record that they do not judge."""
    clusters: np.ndarray
    """int64; records of one episode, or of one prompt, share a number: they are not independent."""

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Summary:
    """What a set of records is like."""

    count: int
    judged: int
    """Records for which both advantages have a sign."""
    wrong: int
    """Judged records whose estimate has the other sign than the Monte-Carlo advantage."""
    wrong_fraction: float | None
    """Of the judged records; None without any."""
    positive_fraction: float
    """Records whose estimate is positive."""
    mean_estimate: float
    mean_monte_carlo: float
    mean_size: float
    """Mean absolute estimate."""
    mean_difference: float
    """Mean absolute difference of both advantages."""


@dataclass(frozen=True)
class Control:
    """A number of random records of the same count: its mean over many draws, and where 95 % of them lie."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """The records at neighbouring ranks, rank 1 for the lowest score."""

    first_rank: int
    last_rank: int
    mean: float
    low: float
    high: float
    """Mean with its 95 % interval by Student's t."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation with its 95 % interval; None for an interval of too few clusters."""

    value: float
    interval: tuple[float, float] | None
    clusters: int


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Both ends of the scores, beside all records and random ones."""

    records: Records
    lowest: np.ndarray
    """Positions of the records with the lowest scores, the lowest first."""
    highest: np.ndarray
    """Positions of the records with the highest scores, the highest first."""
    of_lowest: Summary
    of_highest: Summary
    of_all: Summary
    control: dict[str, Control]
    """Field of `Summary` to that of random records."""
    difference_by_rank: tuple[Bin, ...]
    """Absolute difference of both advantages."""
    product_by_rank: tuple[Bin, ...]
    """Product of both advantages: negative where the estimate has the wrong sign."""
    correlation: Correlation | None
    """Of score and product; None if one of the two is the same for all records."""

    @property
    def is_judged(self) -> bool:
        """Whether enough of the lowest records have a sign by Monte Carlo."""
        return self.of_lowest.judged >= ENOUGH and "wrong_fraction" in self.control


def diagnose(records: Records, *, count: int, seed: int = 0) -> Diagnosis:
    """Compare the records at both ends of the scores with random ones.

    Args:
        records: of one iteration, at least two.
        count: records at each end, at most half of all.
        seed: of the random records, and of the resampling behind an interval.
    """
    order = np.argsort(records.scores, kind="stable")
    lowest, highest = order[:count], order[::-1][:count]
    products = records.estimates * records.monte_carlo
    differences = np.abs(records.monte_carlo - records.estimates)
    return Diagnosis(
        records=records,
        lowest=lowest,
        highest=highest,
        of_lowest=summary_of(records, lowest),
        of_highest=summary_of(records, highest),
        of_all=summary_of(records, order),
        control=_control(records, count=count, seed=seed),
        difference_by_rank=_binned(differences[order]),
        product_by_rank=_binned(products[order]),
        correlation=_correlation(records.scores, products, records.clusters, seed=seed),
    )


def summary_of(records: Records, rows: np.ndarray) -> Summary:
    """Describe some records.

    Args:
        records: of one iteration.
        rows: positions, at least one.
    """
    estimates, monte_carlo = records.estimates[rows], records.monte_carlo[rows]
    judged = int(np.count_nonzero(estimates * monte_carlo))
    wrong = int(np.count_nonzero(estimates * monte_carlo < 0))
    return Summary(
        count=len(rows),
        judged=judged,
        wrong=wrong,
        wrong_fraction=wrong / judged if judged else None,
        positive_fraction=float((estimates > 0).mean()),
        mean_estimate=_mean(estimates),
        mean_monte_carlo=_mean(monte_carlo),
        mean_size=float(np.abs(estimates).mean()),
        mean_difference=float(np.abs(monte_carlo - estimates).mean()),
    )


def _mean(values: np.ndarray) -> float:
    """Return the mean, without what only rounding leaves of numbers that cancel."""
    mean = float(values.mean())
    return mean if abs(mean) > _ROUNDING * float(np.abs(values).mean()) else 0.0


def random_rows(total: int, *, count: int, seed: int) -> list[np.ndarray]:
    """Return the positions of random records, for each of many draws without replacement.

    Args:
        total: records to draw from.
        count: records of a draw.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    return [generator.choice(total, count, replace=False) for _ in range(_DRAWS)]


def control_of(numbers: Sequence[float | None]) -> Control | None:
    """Return the mean of a number over draws, and where 95 % of them lie; None if no draw has the number.

    Args:
        numbers: of each draw.
    """
    values = [value for value in numbers if value is not None]
    if not values:
        return None
    return Control(float(np.mean(values)), *_middle(values))


_COMPARED = ("wrong_fraction", "positive_fraction", "mean_estimate", "mean_monte_carlo", "mean_size", "mean_difference")


def _control(records: Records, *, count: int, seed: int) -> dict[str, Control]:
    drawn = [summary_of(records, rows) for rows in random_rows(len(records), count=count, seed=seed)]
    found = {name: control_of([getattr(one, name) for one in drawn]) for name in _COMPARED}
    return {name: control for name, control in found.items() if control is not None}


def _middle(values: Sequence[float]) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _binned(values: np.ndarray) -> tuple[Bin, ...]:
    """Return means of neighbours, of values in the order of the scores."""
    bins = min(_BINS, len(values) // _FEWEST_IN_BIN)
    edges = np.linspace(0, len(values), bins + 1).round().astype(int) if bins else np.zeros(1, dtype=int)
    return tuple(_bin(values, int(first), int(last)) for first, last in pairwise(edges))


def _bin(values: np.ndarray, first: int, last: int) -> Bin:
    part = values[first:last]
    mean, error = float(part.mean()), float(stats.sem(part))
    width = error * float(stats.t.ppf((1 + _LEVEL) / 2, df=len(part) - 1))
    return Bin(first + 1, last, mean, mean - width, mean + width)


def _correlation(scores: np.ndarray, products: np.ndarray, clusters: np.ndarray, *, seed: int) -> Correlation | None:
    """Return Spearman's correlation; its interval resamples whole clusters, which share rewards."""
    value = _spearman(scores, products)
    if value is None:
        return None
    _, numbers = np.unique(clusters, return_inverse=True)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    if len(members) < ENOUGH:
        return Correlation(value, None, len(members))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(_DRAWS):
        rows = np.concatenate([members[one] for one in generator.integers(len(members), size=len(members))])
        drawn = _spearman(scores[rows], products[rows])
        found += [] if drawn is None else [drawn]
    return Correlation(value, _middle(found or [value]), len(members))


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    # Its definition; `scipy.stats.spearmanr` computes a p-value, too, and takes several times as long.
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def fractions(labels: Sequence[str], rows: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Return the fraction of each label among some records, each label of all records named.

    Args:
        labels: of all records.
        rows: positions, at least one.
    """
    chosen = [labels[int(row)] for row in rows]
    return {label: chosen.count(label) / len(chosen) for label in sorted(set(labels))}
