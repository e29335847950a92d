"""The curves of `stopping.py`, what each rule makes of them, and the tables."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

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


def tables(curves: Curves) -> list[str]:
    return []


def draw(curves: Curves, path: Path) -> None:
    pass
