"""How long an iteration of influence-guided PPO takes beside one of plain PPO, part by part, early and late in a run.

    python benchmarks/iteration.py                      # 4 PPO epochs, 50 iterations, about 5 minutes on 2 cores
    python benchmarks/iteration.py --epochs 1
    python benchmarks/iteration.py --method finite_difference

Both methods run at the same time, each on its fraction of the cores, from the same SFT model, so that whatever else the
machine does hits both. The first iteration, which warms up, does not count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ippo_lightning.cli.compare import run_comparison
from ippo_lightning.cli.settings import CompareSettings, MethodSettings
from ippo_lightning.storage.run_folder import HISTORY

PARTS = {
    "rollout": "time/rollout_seconds",
    "target gradient": "time/target_gradient_seconds",
    "scoring": "time/scoring_seconds",
    "update": "time/update_seconds",
    "whole iteration": "time/iteration_seconds",
}
"""Name of a part to its column in the history of a run; what is left is rewards and bookkeeping."""
START = ["experiments/base/ppo.yaml", "experiments/tasks/arithmetic.yaml"]
GUIDED = "experiments/methods/ippo.yaml"


def main() -> None:
    """Run both methods, print the table, write the numbers."""
    options = parse_options()
    folder = Path(options.run_dir)
    shutil.rmtree(folder, ignore_errors=True)
    compare(options)
    numbers = {
        "first third": thirds(folder, options.seeds, slice(1, None), first=True),
        "last third": thirds(folder, options.seeds, slice(1, None), first=False),
    }
    console = Console(width=100)
    for title, rows in numbers.items():
        console.print(table_of(title, rows))
    (folder / "iteration.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="PPO epochs over the kept episodes")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--run_dir", default="runs/benchmarks/iteration")
    parser.add_argument("--method", default="hooks", help="how I-PPO scores, e.g. finite_difference")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides, for both methods")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> None:
    """Run plain and influence-guided PPO side by side."""
    guided = yaml.safe_load(Path(GUIDED).read_text(encoding="utf-8"))["callbacks+"]
    guided[0]["init_args"]["scoring"]["method"] = options.method
    overrides: dict[str, Any] = {
        "model.init_args.update.num_epochs": options.epochs,
        "loop.max_iterations": options.iterations,
        "loop.evaluate_every_n_iterations": 0,
        "loop.evaluate_first": False,
        "loop.save_model": False,
        **dict(entry.split("=", 1) for entry in options.set),
    }
    settings = CompareSettings(
        run_dir=options.run_dir,
        seeds=options.seeds,
        jobs=2,
        overrides=overrides,
        methods={
            "ppo": MethodSettings(title="PPO", config=START),
            "ippo": MethodSettings(title="I-PPO", config=START, overrides={"callbacks+": guided}),
        },
    )
    run_comparison(settings, command=f"python benchmarks/iteration.py --epochs {options.epochs}")


def thirds(folder: Path, seeds: Sequence[int], span: slice, *, first: bool) -> dict[str, dict[str, float]]:
    """Return the mean seconds of each part, and the kept fraction, by method, over one third of the iterations."""
    result: dict[str, dict[str, float]] = {}
    for method in ("ppo", "ippo"):
        rows: list[Mapping[str, Any]] = []
        for seed in seeds:
            lines = (folder / method / f"seed_{seed}" / HISTORY).read_text(encoding="utf-8").splitlines()
            history = [json.loads(line) for line in lines][span]
            third = max(len(history) // 3, 1)
            rows += history[:third] if first else history[-third:]
        result[method] = {part: statistics.fmean(row.get(key, 0.0) for row in rows) for part, key in PARTS.items()}
        result[method]["kept fraction"] = statistics.fmean(row["update/kept_fraction"] for row in rows)
    return result


def table_of(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Return seconds by part and the ratio of the methods."""
    table = Table(title=f"seconds per iteration, {title}", title_justify="left")
    for column, side in (("part", "left"), ("PPO", "right"), ("I-PPO", "right"), ("I-PPO / PPO", "right")):
        table.add_column(column, justify="left" if side == "left" else "right")
    for part in PARTS:
        plain, guided = rows["ppo"][part], rows["ippo"][part]
        table.add_row(part, f"{plain:.3f}", f"{guided:.3f}", f"{guided / plain:.2f}" if plain else "-")
    table.add_row("kept fraction", f"{rows['ppo']['kept fraction']:.2f}", f"{rows['ippo']['kept fraction']:.2f}", "")
    return table


if __name__ == "__main__":
    main()
