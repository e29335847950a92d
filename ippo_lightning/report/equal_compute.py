"""Two methods at the same cost: both runs of a pair are cut where the cheaper one ends.

A run that drops most episodes takes fewer optimizer steps, and one that computes scores takes more seconds. So a
comparison at equal iterations mixes two effects. Here a pair is also compared at equal optimizer steps, sampled
episodes and seconds. The run that costs more is cut there. Its metric is read from its evaluations on the validation
prompts, on a straight line between two of them. A cut run is what a shorter run would have been only if the learning
rate does not depend on the length of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import NamedTuple, TypedDict

import numpy as np

from ippo_lightning.report.measures import COMPARED, ComparedMetric
from ippo_lightning.report.records import Comparison, Method, Run
from ippo_lightning.report.summary import pair_key, seed_interval

COSTS: Mapping[str, tuple[str, str | None]] = {
    "iterations": ("iterations", None),
    "optimizer_steps": ("optimizer steps", "update/optimizer_steps"),
    "episodes": ("sampled episodes", "rollout/episodes"),
    "seconds": ("seconds", "time/iteration_seconds"),
}
"""By name: the title, and the number of the history whose sum is the cost; None counts the iterations."""
_OF_TARGETS = "influence/target_episodes"
"""Episodes that were sampled for a target alone, in the iterations that did so."""


class CutDifference(TypedDict):
    """Method minus baseline in one metric at an equal cost, over the seeds that both have."""

    mean: float
    interval: list[float] | None
    """As in `PairedDifference`."""
    seeds: list[int | None]


class EqualCost(TypedDict):
    """A pair of methods at one cost."""

    method_used: float
    """Fraction of its iterations that the method is given, mean over seeds, in (0, 1]."""
    baseline_used: float
    """The same of the baseline."""
    differences: dict[ComparedMetric, CutDifference]


class _Cut(NamedTuple):
    """One run at a cost."""

    value: float
    used: float
    """Fraction of its iterations."""


def equal_compute(comparison: Comparison) -> dict[str, dict[str, EqualCost]]:
    """Return the differences of each pair at equal cost, by the pair and the name of the cost.

    Args:
        comparison: from `read_comparison`.

    Returns:
        Keys are those of `differences` in results.json, then those of `COSTS`. A pair without evaluations during
        training, a cost that a run did not record, and the seconds of runs that shared the cores are left out.
    """
    found: dict[str, dict[str, EqualCost]] = {}
    for name, method in comparison.methods.items():
        if method.baseline is None:
            continue
        baseline = comparison.methods[method.baseline]
        # runs that shared the cores have the seconds of the others in theirs
        names = [cost for cost in COSTS if cost != "seconds" or not comparison.shared_cores]
        costs = {cost: view for cost in names if (view := _at_equal(cost, method, baseline)) is not None}
        if costs:
            found[pair_key(name, baseline.name)] = costs
    return found


def _at_equal(cost: str, method: Method, baseline: Method) -> EqualCost | None:
    theirs = {run.seed: run for run in baseline.finished}
    pairs = [(run, theirs[run.seed]) for run in method.finished if run.seed in theirs]
    differences: dict[ComparedMetric, CutDifference] = {}
    used: list[tuple[float, float]] = []
    for metric in COMPARED:
        cuts = {mine.seed: cut for mine, other in pairs if (cut := _cut_pair(mine, other, cost, metric)) is not None}
        if cuts:
            values = [one.value - other.value for one, other in cuts.values()]
            differences[metric] = {"mean": fmean(values), "interval": seed_interval(values), "seeds": list(cuts)}
            used = used or [(one.used, other.used) for one, other in cuts.values()]
    if not differences:
        return None
    return {
        "method_used": fmean(mine for mine, _ in used),
        "baseline_used": fmean(other for _, other in used),
        "differences": differences,
    }


def _cut_pair(mine: Run, other: Run, cost: str, metric: str) -> tuple[_Cut, _Cut] | None:
    costs = _totals(mine, cost), _totals(other, cost)
    curves = mine.validation(metric), other.validation(metric)
    # one evaluation is no curve: both would be compared at their own ends, whatever that cost
    if None in costs or any(len(curve) < 2 for curve in curves):
        return None
    pairs = [(totals, curve) for totals, curve in zip(costs, curves, strict=True) if totals is not None]
    # nothing is known behind the last evaluation
    budget = min(totals[min(max(curve), len(totals) - 1)] for totals, curve in pairs)
    cuts = [cut_at(budget, totals, curve) for totals, curve in pairs]
    return None if budget <= 0 or cuts[0] is None or cuts[1] is None else (cuts[0], cuts[1])


def cut_at(budget: float, totals: Sequence[float], curve: Mapping[int, float]) -> _Cut | None:
    """Return a metric where a run has spent a budget.

    Args:
        budget: in the unit of `totals`, above 0.
        totals: cost of the first 0, 1, 2, ... iterations; never falls.
        curve: the metric by the number of iterations that are done.

    Returns:
        The metric on a straight line between two evaluations, and the fraction of the iterations that the budget pays;
        None if the budget ends before the first evaluation or after the last one.

    Example:
        >>> cut_at(15.0, [0.0, 10.0, 20.0], {0: 0.0, 2: 1.0})
        _Cut(value=0.75, used=0.75)
    """
    points = sorted(curve)
    last = min(points[-1], len(totals) - 1)
    # the last iterations may cost nothing, as those do that keep no episode
    done = float(last if budget >= totals[last] else np.interp(budget, totals, np.arange(len(totals))))
    if done < points[0] or budget > totals[last]:
        return None
    return _Cut(float(np.interp(done, points, [curve[point] for point in points])), done / (len(totals) - 1))


def _totals(run: Run, cost: str) -> list[float] | None:
    """Return the cost of the first 0, 1, 2, ... iterations; None if an iteration did not record it."""
    key = COSTS[cost][1]
    if not run.history:
        return None
    if key is None:
        return [float(count) for count in range(len(run.history) + 1)]
    spent = run.series(key)
    if len(spent) < len(run.history):
        return None
    more = run.series(_OF_TARGETS) if cost == "episodes" else {}
    return [0.0, *accumulate(value + more.get(iteration, 0.0) for iteration, value in spent.items())]
