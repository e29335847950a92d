r"""Which way to choose rollouts or prompts helps: interquartile means, and one figure, of a comparison of selectors.

    ippo compare --config experiments/grids/selection.yaml               # the runs; goes on where it stopped
    pip install -e '.[bench]'
    python benchmarks/selection.py runs/selection                        # the table
    python benchmarks/selection.py runs/selection --figure selection.png # also the figure
    python benchmarks/selection.py runs/selection --keep benchmarks/curves/selection.json

The argument is the folder of the comparison, or a file that `--keep` wrote: its numbers without the curves. The
interquartile mean and its interval by stratified bootstrap over seeds are those of rliable (Agarwal et al. 2021, arXiv
2108.13264), as is the probability that a seed of the method ends above one of its baseline.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ippo_lightning.storage.run_folder import RESULTS

METRICS = {"exact_match": "Exact match", "unfaithful_fraction": "Unfaithful"}
COSTS = {
    "iterations": ("equal iterations", "o"), "optimizer_steps": ("equal optimizer steps", "s"),
    "episodes": ("equal sampled episodes", "D"), "seconds": ("equal seconds", "^"),
}  # fmt: skip
"""Of results.json: the words and the marker of a view."""
_LEFT_OUT = ("kept_fraction", "iteration_seconds", "effective_sample_size")
_RESAMPLES = 10_000


def main() -> None:
    """Print the table, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--figure", type=Path, help="write the differences at equal cost into this file")
    parser.add_argument("--keep", type=Path, help="write the numbers without the curves into this file")
    options = parser.parse_args()
    results = read(options.comparison)
    for line in table(results):
        print(line)
    if options.keep is not None:
        options.keep.write_text(json.dumps(kept(results), indent=1) + "\n", encoding="utf-8")
    if options.figure is not None:
        draw(results, options.figure)


def read(path: Path) -> dict[str, Any]:
    """Return the content of a results.json, or of a file that `--keep` wrote."""
    found: dict[str, Any] = json.loads((path / RESULTS if path.is_dir() else path).read_text(encoding="utf-8"))
    return found


def kept(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers that the tables and the figure need: not the curves, and no machine's own words."""
    methods = {
        name: {
            **{key: value for key, value in one.items() if key not in _LEFT_OUT},
            "kept": last_third(one),
            "seconds": median_seconds(one),
        }
        for name, one in results["methods"].items()
    }
    names = ("differences", "equal_compute", "detection", "k")
    return {"methods": methods, **{name: results[name] for name in names if name in results}}


def last_third(summary: Mapping[str, Any]) -> float | None:
    """Return the kept fraction over the last third of the iterations."""
    values = summary.get("kept_fraction", ())
    return float(np.mean(values[-max(1, len(values) // 3) :])) if values else summary.get("kept")


def median_seconds(summary: Mapping[str, Any]) -> float | None:
    """Return the median seconds of an iteration."""
    values = summary.get("iteration_seconds", ())
    return float(np.median(values)) if values else summary.get("seconds")


def table(results: Mapping[str, Any]) -> list[str]:
    """Return a Markdown table: per method the interquartile mean over seeds, and the chance to beat its baseline.

    Args:
        results: from `read`.
    """
    means = {metric: interquartile_means(results["methods"], metric) for metric in METRICS}
    lines = ["| Method | Seeds | Exact match, % | P(better) | Unfaithful, % | P(better) | Kept, % | Tokens trained |"]
    lines.append("|---" * 8 + "|")
    for name, one in results["methods"].items():
        if not one["seeds"]:
            continue
        cells = [one["title"], str(len(one["seeds"]))]
        for metric in METRICS:
            cells += [shown(means[metric].get(name)), chance(results["methods"], name, metric)]
        share = last_third(one)
        cells += ["-" if share is None else f"{100 * share:.0f}", f"{(one['tokens_trained'] or 0) / 1000:.0f} k"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def interquartile_means(methods: Mapping[str, Any], metric: str) -> dict[str, tuple[float, float, float]]:
    """Return mean, low and high of each method, in per cent.

    Args:
        methods: of results.json.
        metric: of the final test.
    """
    from rliable import library, metrics

    scores = {
        name: np.array(one["per_seed"][metric], dtype=np.float64)[:, None]
        for name, one in methods.items()
        if len(one["seeds"]) > 1 and None not in one["per_seed"][metric]
    }
    if not scores:
        return {}
    state = np.random.RandomState(0)  # rliable takes no other generator
    points, intervals = library.get_interval_estimates(
        scores, lambda runs: np.array([metrics.aggregate_iqm(runs)]), reps=_RESAMPLES, random_state=state
    )
    return {
        name: (100 * float(points[name][0]), 100 * float(intervals[name][0, 0]), 100 * float(intervals[name][1, 0]))
        for name in scores
    }


def shown(found: tuple[float, float, float] | None) -> str:
    """Return a mean with its interval; a dash without one."""
    return "-" if found is None else f"{found[0]:.1f} [{found[1]:.1f}, {found[2]:.1f}]"


def chance(methods: Mapping[str, Any], name: str, metric: str) -> str:
    """Return how often a seed of a method is better than one of its baseline, in per cent; a dash for single seeds.

    Args:
        methods: of results.json.
        name: of the method.
        metric: of the final test; less unfaithful is better.
    """
    from rliable import metrics

    baseline = methods[name]["baseline"]
    if baseline is None or min(len(methods[one]["seeds"]) for one in (name, baseline)) < 2:
        return "-"
    pair = [np.array(methods[one]["per_seed"][metric], dtype=np.float64)[:, None] for one in (name, baseline)]
    sign = -1.0 if metric == "unfaithful_fraction" else 1.0
    return f"{100 * float(metrics.probability_of_improvement(sign * pair[0], sign * pair[1])):.0f} %"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the difference of each pair at equal cost with its interval, one panel per metric and baseline.

    Args:
        results: from `read`.
        path: of the figure.
    """
    import matplotlib.pyplot as plt

    pairs = results["equal_compute"]
    baselines = list(dict.fromkeys(pair.rpartition(" - ")[2] for pair in pairs))
    groups = {one: [pair for pair in pairs if pair.rpartition(" - ")[2] == one] for one in baselines}
    heights = [len(group) + 1.5 for group in groups.values()]
    figure, axes = plt.subplots(
        len(groups), len(METRICS), figsize=(10, 0.36 * sum(heights) + 1.2), squeeze=False, layout="constrained",
        sharey="row", sharex="col", height_ratios=heights,
    )  # fmt: skip
    for row, (baseline, group) in zip(axes, groups.items(), strict=True):
        for axis, (metric, title) in zip(row, METRICS.items(), strict=True):
            _panel(axis, [pairs[pair] for pair in group], metric)
            axis.set_title(f"{title}, points, minus {baseline}", fontsize=10)
            axis.set_yticks(range(len(group)), [pair.rpartition(" - ")[0] for pair in group])
        row[0].invert_yaxis()  # shared by the row
    axes[0, 0].legend(frameon=False, fontsize=8, loc="best")
    figure.savefig(path, dpi=100)


def _panel(axis: Any, views: Sequence[Mapping[str, Any]], metric: str) -> None:
    axis.axvline(0, color="0.6", linewidth=0.8)
    for place, (cost, (words, marker)) in enumerate(COSTS.items()):
        shift = 0.18 * (place - 1.5)
        for height, by_cost in enumerate(views):
            found = by_cost.get(cost, {}).get("differences", {}).get(metric)
            if found is None:
                continue
            low, high = found["interval"] or (found["mean"], found["mean"])
            axis.plot([100 * low, 100 * high], [height + shift] * 2, color=f"C{place}", linewidth=1)
            label = words if height == 0 else None
            axis.plot(100 * found["mean"], height + shift, marker, color=f"C{place}", markersize=4, label=label)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
