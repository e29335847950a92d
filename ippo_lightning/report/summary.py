"""Computes the numbers of results.json from the runs of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any, Literal, TypedDict, cast

import numpy as np
from scipy import stats

from ippo_lightning.report.measures import COMPARED, METRICS, USUAL, ComparedMetric, Metric, compared_among
from ippo_lightning.report.paired_prompts import paired_over_prompts
from ippo_lightning.report.prompt_intervals import prompt_interval
from ippo_lightning.report.records import Comparison, Method, Run
from ippo_lightning.report.sample_counts import column_of, columns_in, count_of, metric_of, split_metrics, value_in

# The interval of a table is computed once. A curve has hundreds of points, so it makes do with fewer resamples.
_RESAMPLES = 9999
_CURVE_RESAMPLES = 1999
_ROUNDING = 1e-12
FEW_SEEDS = 5
"""Fewer seeds than this support no finding: by chance alone, all of four paired ones have one sign once in eight."""


class _Curves(TypedDict, total=False):
    """What a method that updates on episodes has for each iteration, mean over the seeds that reached it."""

    kept_fraction: list[float]
    iteration_seconds: list[float]


class _Unusual(TypedDict, total=False):
    """What a test without a grader has; not there if no run of the comparison recorded it."""

    reward: float | None
    episode_return: float | None
    episode_length: float | None


class MethodSummary(_Curves, _Unusual):
    """The numbers of one method. Fractions are in [0, 1]; a missing number is None."""

    title: str
    baseline: str | None
    featured: bool
    exact_match: float | None
    majority_vote: float | None
    pass_at_k: float | None
    unfaithful_fraction: float | None
    intervals: dict[str, list[float] | None]
    """95 % interval of each metric, [low, high]; the range of fewer than five seeds; None if there is none."""
    interval_over: Literal["seeds", "prompts"] | None
    """What the intervals are about: other seeds, or, for a single run, other test prompts."""
    seeds: list[int | None]
    per_seed: dict[str, list[float | None]]
    """In the order of `seeds`. A key is a metric, or a column such as `pass_at_8`: see `summarise`."""
    optimizer_steps: float | None
    tokens_trained: float | None
    effective_sample_size: list[float] | None


class PairedDifference(TypedDict):
    """Method minus baseline in one metric, over the seeds that both have."""

    mean: float | None
    interval: list[float] | None
    interval_over: Literal["seeds", "prompts"] | None
    """As in `MethodSummary`: with a single pair of runs on the same test prompts, the interval is over these."""
    seeds: list[int | None]
    per_seed: list[float]


class Results(TypedDict):
    """The content of results.json."""

    methods: dict[str, MethodSummary]
    differences: dict[str, dict[ComparedMetric, PairedDifference]]
    unfinished: list[str]
    versions: dict[str, str]
    command: str
    machine: str
    jobs: int | None
    """Runs under way at the same time; with more than one, seconds measure what the others did, too."""
    k: int | None
    """Of pass@k; None if the runs have different ones, which then have columns such as `pass_at_4` and `pass_at_8`."""


def summarise(comparison: Comparison) -> Results:
    """Return the content of results.json. Runs that did not finish are named, not averaged.

    Args:
        comparison: from `read_comparison`.

    Returns:
        `methods`, `differences` (paired by seed; a key is "<method> - <baseline>"), `unfinished`, `versions`,
        `command`, `machine`, `jobs`. Fractions are in [0, 1]; a missing number is None, never NaN. If runs sampled
        different numbers of responses, no mean mixes them: `pass_at_k` and `majority_vote` are None, and each method
        has its number under `pass_at_<k>` and `majority_vote_of_<samples>`.
    """
    split = split_metrics(run for method in comparison.methods.values() for run in method.finished)
    columns = _recorded(comparison, split)
    return {
        "methods": {name: _summarise_method(method, columns, split) for name, method in comparison.methods.items()},
        "differences": _differences(comparison),
        "unfinished": list(comparison.unfinished),
        "versions": dict(comparison.versions),
        "command": comparison.command,
        "machine": comparison.machine,
        "jobs": comparison.jobs,
        "k": _common_k(comparison),
    }


def common_result(comparison: Comparison, key: str) -> int | None:
    """Return a whole number of the results in which all finished runs agree; None if they do not.

    Args:
        comparison: from `read_comparison`.
        key: of the final results of a run.
    """
    found = {run.result(key) for method in comparison.methods.values() for run in method.finished}
    # Runs that disagree cannot be summed up in one number, so the report shows none.
    value = found.pop() if len(found) == 1 else None
    return None if value is None else int(value)


def _common_k(comparison: Comparison) -> int | None:
    runs = [run for method in comparison.methods.values() for run in method.finished]
    # A run without pass@k, such as one in an environment, has no k that could differ.
    found = {count_of(run, "pass_at_k") for run in runs if run.result("pass_at_k") is not None}
    return found.pop() if len(found) == 1 else None


def metric_intervals(
    method: Method, columns: Sequence[str] = USUAL, split: frozenset[Metric] = frozenset()
) -> tuple[dict[str, list[float] | None], Literal["seeds", "prompts"] | None]:
    """Return the 95 % interval of each number of a method, and over what it is.

    Args:
        method: with several finished runs the interval is over seeds, and fewer than five have their range. A single
            run has only its prompts, which tell how exact its test is, and nothing about another seed.
        columns: of the final test.
        split: metrics with a column for each count, from `split_metrics`.
    """
    runs = method.finished
    outcomes = runs[0].prompt_outcomes if len(runs) == 1 else None
    if outcomes is not None:
        # The counts of the prompts are those of a grader; they have no rewards and no returns.
        of_prompts = [c for c in columns if metric_of(c) in USUAL and column_of(runs[0], metric_of(c), split) == c]
        return {c: prompt_interval(outcomes, metric_of(c)) if c in of_prompts else None for c in columns}, "prompts"
    found = {column: seed_interval([value_in(run, column, split) for run in runs]) for column in columns}
    return found, "seeds" if any(found.values()) else None


def _recorded(comparison: Comparison, split: frozenset[Metric]) -> tuple[str, ...]:
    """Return the columns: the usual ones always, any other one if a run has it."""
    found = _with_values(comparison)
    runs = [run for method in comparison.methods.values() for run in method.finished]
    names = {column_of(run, metric, split) for run in runs for metric in split if run.result(metric) is not None}
    known = [metric for metric in METRICS if metric in USUAL or metric in found]
    return tuple(column for metric in known for column in columns_in(metric, {metric, *names}))


def _with_values(comparison: Comparison) -> list[Metric]:
    runs = [run for method in comparison.methods.values() for run in method.finished]
    return [metric for metric in METRICS if any(run.result(metric) is not None for run in runs)]


def seed_interval(values: Sequence[float | None]) -> list[float] | None:
    """Return what several seeds tell of another one: a 95 % bootstrap interval, or only the range of a few.

    Args:
        values: one per seed; None for a seed without the number.

    Returns:
        [low, high] as `bootstrap_interval` gives it; with fewer than five values the least and the greatest.
    """
    known = [value for value in values if value is not None]
    # A resample of so few values repeats one of them so often that the interval is hardly more than their range.
    if len(known) >= FEW_SEEDS:
        return bootstrap_interval(known)
    return [min(known), max(known)] if known and max(known) - min(known) >= _ROUNDING else None


def bootstrap_interval(values: Sequence[float | None]) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of a mean over seeds.

    Resamples the seeds 9999 times with replacement (`scipy.stats.bootstrap`, fixed generator).

    Args:
        values: one per seed; None for a seed without the number.

    Returns:
        [low, high], or None with fewer than two values, or with values that are all equal: they tell nothing about
        how far another seed may be from them.
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    # Resamples that are all equal would give an interval of no width, which looks like certainty.
    if known.size < 2 or np.ptp(known) < _ROUNDING:
        return None
    interval = stats.bootstrap(
        (known,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=0.95,
        method="percentile",  # BCa, the default, divides by zero if all seeds agree
        rng=np.random.default_rng(0),  # the same runs give the same report
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def bootstrap_bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean, for the many points of a curve; the range of a few.

    All points of a curve use the same resamples: independent ones would make the band jagged.

    Args:
        values: one per seed, at least one.

    Example:
        >>> bootstrap_bounds([0.5])
        (0.5, 0.5)
    """
    known = np.asarray(values, dtype=np.float64)
    if len(known) < FEW_SEEDS:
        return float(known.min()), float(known.max())
    means = known[_resamples(len(known))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=16)
def _resamples(count: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return indices, shape [resamples, count]."""
    return np.random.default_rng(0).integers(count, size=(_CURVE_RESAMPLES, count))


def last_third(values: Sequence[float | None]) -> float | None:
    """Return the mean over the last third of the iterations (at least one); None if there are no iterations."""
    # At least one, because values[-0:] would be all of them.
    return _mean(values[-max(1, len(values) // 3) :]) if values else None


def _summarise_method(method: Method, columns: Sequence[str], split: frozenset[Metric]) -> MethodSummary:
    runs = method.finished
    intervals, interval_over = metric_intervals(method, columns, split)
    per_seed = {column: [value_in(run, column, split) for run in runs] for column in columns}
    unusual = cast(_Unusual, {column: _mean(per_seed[column]) for column in columns if column not in USUAL})
    kept_fraction = mean_by_iteration(runs, "update/kept_fraction")
    # A method that never updates on episodes (an evaluation, supervised training) has no such curves.
    iterations: _Curves = (
        {"kept_fraction": kept_fraction, "iteration_seconds": mean_by_iteration(runs, "time/iteration_seconds")}
        if kept_fraction
        else {}
    )
    return {
        "title": method.title,
        "baseline": method.baseline,
        "featured": method.featured,
        "exact_match": _mean(per_seed["exact_match"]),
        "majority_vote": _mean(per_seed["majority_vote"]),
        "pass_at_k": _mean(per_seed["pass_at_k"]),
        "unfaithful_fraction": _mean(per_seed["unfaithful_fraction"]),
        **unusual,
        "intervals": intervals,
        "interval_over": interval_over,
        "seeds": [run.seed for run in runs],
        "per_seed": per_seed,
        **iterations,
        "optimizer_steps": _mean([_total(run, "update/optimizer_steps") for run in runs]),
        "tokens_trained": _mean([_total(run, "update/tokens_trained") for run in runs]),
        "effective_sample_size": mean_by_iteration(runs, "influence/effective_sample_size") or None,
    }


def pair_key(method: str, baseline: str) -> str:
    """Return the key of a paired difference in `differences`."""
    return f"{method} - {baseline}"


def _differences(comparison: Comparison) -> dict[str, dict[ComparedMetric, PairedDifference]]:
    found: dict[str, dict[ComparedMetric, PairedDifference]] = {}
    recorded = compared_among(_with_values(comparison))
    metrics = [metric for metric in COMPARED if metric in USUAL or metric in recorded]
    for name, method in comparison.methods.items():
        if method.baseline is None:
            continue
        baseline = comparison.methods[method.baseline]
        compared = {metric: _paired(method, baseline, metric) for metric in metrics}
        if any(difference["seeds"] for difference in compared.values()):  # no common seed yet: nothing to compare
            found[pair_key(name, baseline.name)] = compared
    return found


def _paired(method: Method, baseline: Method, metric: ComparedMetric) -> PairedDifference:
    """Subtract seed by seed. The effect of the seed (data, starting model) is in both numbers and cancels."""
    # By seed and not by position: a run in the middle may be unfinished, and later pairs would be wrong.
    theirs = {run.seed: run.result(metric) for run in baseline.finished}
    # A run outside a comparison has no seed in its folder's name. Two such runs still make one pair, under None.
    by_seed: dict[int | None, float] = {}
    for run in method.finished:
        mine, other = run.result(metric), theirs.get(run.seed)
        if mine is not None and other is not None:
            by_seed[run.seed] = mine - other
    values = list(by_seed.values())
    interval = seed_interval(values)
    over: Literal["seeds", "prompts"] | None = None if interval is None else "seeds"
    if len(values) == 1 and metric in USUAL:
        (seed,) = by_seed
        interval = paired_over_prompts(_of_seed(baseline, seed), _of_seed(method, seed), metric)
        over = None if interval is None else "prompts"
    return {
        "mean": _mean(values),
        "interval": interval,
        "interval_over": over,
        "seeds": list(by_seed),
        "per_seed": values,
    }


def _of_seed(method: Method, seed: int | None) -> Run:
    return next(run for run in method.finished if run.seed == seed)


def mean_by_iteration(runs: Sequence[Run], key: str) -> list[float]:
    """Return, for each iteration, the mean over the seeds that reached it."""
    series = [run.series(key) for run in runs]
    iterations = sorted({iteration for one in series for iteration in one})
    return [fmean(one[iteration] for one in series if iteration in one) for iteration in iterations]


def _total(run: Run, *keys: str) -> float | None:
    values = run.series(*keys).values()  # empty if the run never recorded it: then None, not a total of zero
    return sum(values) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
