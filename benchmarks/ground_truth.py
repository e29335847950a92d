"""Do scores say what one real optimizer step does? Leave-one-out, half batches, poisoned episodes, over seeds.

    python benchmarks/ground_truth.py --seeds 10        # about 5 minutes on 2 cores

Setting: `one_step.py`. "leave-one-out" is Spearman's correlation of scores with the rise of the validation loss when an
episode is left out of one step; "half batches" that of summed scores with the loss after a step on a random half.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from one_step import (
    NUM_EPISODES,
    Scene,
    Steps,
    area_under_curve,
    build_scene,
    rank_correlation,
    scores_of,
    slope,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor

STEPS = (("sgd", 1e-4), ("sgd", 1e-3), ("sgd", 1e-2), ("adamw", 1e-5), ("adamw", 1e-4), ("adamw", 1e-3))
KINDS = ("raw", "adam", "cosine")
Numbers = dict[str, list[float]]


def main() -> None:
    """Measure over seeds, print tables, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", help="file for the numbers")
    options = parser.parse_args()
    found: dict[str, Numbers] = {}
    for seed in range(options.seeds):
        scene = build_scene(seed)
        scores = {kind: scores_of(scene, kind=kind) for kind in KINDS}
        for name, value in [*correlations(scene, scores), *detection(scene, scores), *ordering(scene, scores["raw"])]:
            found.setdefault(name[0], {}).setdefault(name[1], []).append(value)
    console = Console(width=100)
    for title, rows in found.items():
        console.print(table_of(title, rows))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def correlations(scene: Scene, scores: dict[str, Tensor]) -> list[tuple[tuple[str, str], float]]:
    """Compare scores with what steps do."""
    found = []
    for optimizer, rate in STEPS:
        steps = Steps(scene, optimizer=optimizer, learning_rate=rate)
        effects = steps.leave_one_out()
        halves, losses = steps.half_batches(40, torch.Generator().manual_seed(0))
        for kind in KINDS if optimizer == "adamw" else ("raw", "cosine"):
            name = f"{optimizer} {rate:g}, {kind}"
            pairs = {
                "leave-one-out, Spearman": rank_correlation(effects, scores[kind]),
                "leave-one-out, signs": float((effects.sign() == scores[kind].sign()).double().mean()),
                "half batches, Spearman": rank_correlation(-losses, halves @ scores[kind]),
            }
            if optimizer == "sgd" and kind == "raw":
                pairs["leave-one-out, slope"] = slope(effects, rate * scores[kind] / NUM_EPISODES)
            found += [((measure, name), value) for measure, value in pairs.items()]
    return found


def detection(scene: Scene, scores: dict[str, Tensor]) -> list[tuple[tuple[str, str], float]]:
    """Find the poisoned episodes by their low scores."""
    poisoned = scene.episodes.poisoned
    return [(("finding flipped advantages, AUC", kind), area_under_curve(scores[kind], poisoned)) for kind in KINDS]


def ordering(scene: Scene, scores: Tensor) -> list[tuple[tuple[str, str], float]]:
    """Return the validation loss after one step on some of the episodes, less that before it."""
    steps = Steps(scene, optimizer="sgd", learning_rate=1e-3)
    before = steps.loss_after(torch.zeros(NUM_EPISODES, dtype=torch.float64))
    return [
        (("one step of SGD 1e-3, change of the loss", name), steps.loss_after(weights) - before)
        for name, weights in choices(scores).items()
    ]


def choices(scores: Tensor) -> dict[str, Tensor]:
    """Return weights [rows]: all, the positives, as many at random, as many of the lowest."""
    positive = (scores > 0).double()
    count = int(positive.sum())
    drawn = torch.zeros_like(positive)
    drawn[torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))[:count]] = 1
    return {
        "all": torch.ones_like(positive),
        "positives only": positive,
        "as many at random": drawn,
        "negatives only": 1 - positive,
    }


def table_of(title: str, rows: Numbers) -> Table:
    """Return mean, minimum and maximum over seeds."""
    table = Table(title=title, title_justify="left")
    for column in ("", "mean", "lowest", "highest"):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in rows.items():
        table.add_row(name, *(f"{number:.4g}" for number in (statistics.fmean(values), min(values), max(values))))
    return table


if __name__ == "__main__":
    main()
