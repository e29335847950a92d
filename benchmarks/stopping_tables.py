"""The curves of `stopping.py`, what each rule makes of them, and the tables."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from scipy import stats

from ippo_lightning.storage.atomic import write_text_whole

CURVES = Path(__file__).parent / "curves" / "stopping.csv"
Curve = list[dict[str, float]]
"""One row per iteration: losses before its update, prediction, kept fraction, cost; NaN where nothing was evaluated."""
Curves = dict[tuple[str, int], Curve]
"""By case and seed."""
COLUMNS = (
    "loss", "held_out", "predicted_gain", "predicted_gain_low", "predicted_gain_high", "kept", "tokens", "seconds",
    "exact_match", "unfaithful",
)  # fmt: skip


def read_curves(path: Path) -> Curves:
    """Return the curves of a file; none if there is no such file."""
    curves: Curves = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                curve = curves.setdefault((row["case"], int(row["seed"])), [])
                curve.append({name: float(row[name]) for name in COLUMNS})
    return curves


def write_curves(path: Path, curves: Mapping[tuple[str, int], Curve]) -> None:
    """Write curves into a file, one line per iteration."""
    lines = [",".join(("case", "seed", "iteration", *COLUMNS))]
    for (case, seed), curve in sorted(curves.items()):
        for number, row in enumerate(curve, start=1):
            lines.append(",".join((case, str(seed), str(number), *(f"{row[name]:.5g}" for name in COLUMNS))))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, "\n".join(lines) + "\n")


def by_gain(curve: Curve, *, patience: int = 3, window: int = 10) -> int | None:
    """Return after how many iterations `GainStopping` ends a run; None if it does not."""
    flags = [number >= window and not row["predicted_gain_low"] > 0 for number, row in enumerate(curve, start=1)]
    return _first_run(flags, patience)


def by_kept_fraction(curve: Curve, *, threshold: float = 0.2, patience: int = 3) -> int | None:
    """Return after how many iterations `IntrinsicStopping` ends a run; None if it does not."""
    return _first_run([row["kept"] < threshold for row in curve], patience)


def by_validation(curve: Curve, *, patience: int = 3) -> int | None:
    """Return after how many iterations Lightning's `EarlyStopping` on exact match ends a run; None if it does not."""
    best, waited = -math.inf, 0
    for number, row in enumerate(curve, start=1):
        if math.isnan(row["exact_match"]):
            continue
        is_better = row["exact_match"] > best
        best, waited = max(best, row["exact_match"]), 0 if is_better else waited + 1
        if waited >= patience:
            return number
    return None


RULES: Mapping[str, Callable[[Curve], int | None]] = {
    "predicted gain": by_gain,
    "kept fraction < 0.2": by_kept_fraction,
    "kept fraction < 0.45": partial(by_kept_fraction, threshold=0.45),
    "patience on exact match": by_validation,
}


def _first_run(flags: Sequence[bool], length: int) -> int | None:
    """Return the end of the first run of so many true flags, counted from 1."""
    run = 0
    for number, flag in enumerate(flags, start=1):
        run = run + 1 if flag else 0
        if run == length:
            return number
    return None


def tables(curves: Curves) -> list[str]:
    """Return the lines of all tables: what each rule saves and loses, and how good the prediction is."""
    lines: list[str] = []
    for case in dict.fromkeys(case for case, _ in curves):
        runs = [curve for (of_case, _), curve in curves.items() if of_case == case]
        evaluated = any(not math.isnan(row["exact_match"]) for row in runs[0])
        lines += ["", f"{case}, {len(runs)} seeds of {len(runs[0])} iterations", "", *_rules_table(runs, evaluated)]
        lines += ["", *_calibration_table(runs)]
    return lines


def _rules_table(runs: Sequence[Curve], evaluated: bool) -> list[str]:
    head = ["rule", "stopped", "after iterations", "iterations saved, %", "tokens saved, %", "seconds saved, %"]
    head += ["exact match, points", "unfaithful, points"] if evaluated else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, rule in RULES.items():
        if name == "patience on exact match" and not evaluated:
            continue
        stops = [rule(curve) for curve in runs]
        ends = [stop or len(curve) for stop, curve in zip(stops, runs, strict=True)]
        both = list(zip(runs, ends, strict=True))
        cells = [
            f"{sum(stop is not None for stop in stops)} of {len(runs)}",
            spread([float(end) for end in ends]),
            spread([100 * (1 - end / len(curve)) for curve, end in both]),
            *(spread([_saved(curve, end, column) for curve, end in both]) for column in ("tokens", "seconds")),
        ]
        if evaluated:
            cells += [
                spread([_lost(curve, end, name) for curve, end in both]) for name in ("exact_match", "unfaithful")
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _saved(curve: Curve, end: int, column: str) -> float:
    total = sum(row[column] for row in curve)
    return 100 * sum(row[column] for row in curve[end:]) / total


def _lost(curve: Curve, end: int, column: str) -> float:
    """Return the newest evaluation at a stop, minus that of the full run, in points."""
    full = [row[column] for row in curve if not math.isnan(row[column])]
    seen = [row[column] for row in curve[:end] if not math.isnan(row[column])]
    return 100 * (seen[-1] - full[-1]) if seen else math.nan


def _calibration_table(runs: Sequence[Curve]) -> list[str]:
    """Compare predictions with the change of the loss over the same update; the first one knows no state of Adam."""
    lines = [
        "| loss of | pairs | correlation | rank correlation | measured / predicted |",
        "|---" * 5 + "|",
    ]
    for title, column in {"the demonstrations": "loss", "held-out demonstrations": "held_out"}.items():
        pairs = [(before, before[column] - after[column]) for curve in runs for before, after in pairwise(curve[1:])]
        predicted, measured = [row["predicted_gain"] for row, _ in pairs], [change for _, change in pairs]
        cells = [
            str(len(pairs)),
            f"{stats.pearsonr(predicted, measured)[0]:.2f}",
            f"{stats.spearmanr(predicted, measured)[0]:.2f}",
            f"{statistics.fmean(measured) / statistics.fmean(predicted):.2f}",
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Return the mean, and its 95 % interval by Student's t over the seeds."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    if len(known) < 2:
        return f"{mean:.1f}"
    half = float(stats.t.ppf(0.975, len(known) - 1)) * statistics.stdev(known) / math.sqrt(len(known))
    return f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}]"


def draw(curves: Curves, path: Path) -> None:
    """Draw the predictions with their intervals and the measured gains, one panel per case, of its first seed.

    Args:
        curves: by case and seed.
        path: of the figure.
    """
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(case for case, _ in curves))
    figure, axes = plt.subplots(1, len(cases), figsize=(4.6 * len(cases), 3.4), squeeze=False, layout="constrained")
    for case, axis in zip(cases, axes[0], strict=True):
        seed = min(number for of_case, number in curves if of_case == case)
        curve = curves[case, seed][1:]
        numbers = range(2, len(curve) + 2)
        axis.plot(numbers, [row["predicted_gain"] for row in curve], label="predicted")
        ends = [[row[f"predicted_gain_{end}"] for row in curve] for end in ("low", "high")]
        axis.fill_between(numbers, *ends, alpha=0.2, linewidth=0)
        for label, column in (("measured", "loss"), ("measured, held out", "held_out")):
            changes = [before[column] - after[column] for before, after in pairwise(curve)]
            axis.plot(numbers[:-1], changes, label=label, linewidth=0.9)
        axis.axhline(0, color="grey", linewidth=0.7)
        axis.set(title=f"{case}, seed {seed}", xlabel="iteration", ylabel="decrease of the loss, nats")
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)
