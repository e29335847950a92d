r"""Whether IIF reaches a return sooner than PPO, beside the paper's numbers and with the random-drop control.

    python benchmarks/iif.py --tasks frozenlake --seeds 5                # runs what is missing, then prints the table
    python benchmarks/iif.py --tasks frozenlake acrobot minigrid lunarlander --seeds 5
    python benchmarks/iif.py --tasks frozenlake --table                  # only the table, of the runs that ended
    python benchmarks/iif.py --tasks frozenlake --figure curves.png      # also the learning curves
    python benchmarks/iif.py --price                                     # scoring beside the optimisation of a round

Each run is `ippo fit` in a process of its own, in a folder of its own, and resumes if it was interrupted. A run that
has ended becomes lines of benchmarks/curves/iif.csv and is not run again. Each seed of a method is compared with the
same seed of PPO; an interval is Student's, at 95 %, over the seeds. The line `ppo, next seed` compares PPO with itself:
the levels are those of one noisy curve, so a method without any effect does not get 0. An evaluation plays 100 episodes
after each round and not the paper's 1000, with actions drawn from the policy as there. On a CPU core of its own, a run
of FrozenLake takes less than a minute.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ippo_lightning.metrics import efficiency
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.run_folder import EVALUATIONS, HISTORY, RunFolder

FRACTIONS = {"frozenlake": 0.5, "acrobot": 0.5, "highway": 0.5, "minigrid": 0.125, "lunarlander": 0.125,
             "bipedalwalker": 0.0625}  # fmt: skip
"""Of the negatives, which the paper drops."""
PAPER = {
    "frozenlake": (34.0, 19.2, 29.5), "acrobot": (36.7, 48.5, 55.2), "minigrid": (65.8, 61.7, 69.1),
    "highway": (37.7, 55.1, 59.9), "lunarlander": (26.0, 39.7, 44.9), "bipedalwalker": (31.0, 26.2, 29.2),
}  # fmt: skip
"""SE_ave, SE_peak and RT_peak of IIF, in per cent (Hu et al. 2025, arXiv 2505.19281)."""
VARIANTS: Mapping[str, Sequence[str]] = {
    "no_clipping": ["--model.init_args.update.max_grad_norm", "null"],
    "adam": ["--model.init_args.optimizer.kind", "adamw", "--model.init_args.optimizer.learning_rate", "1e-3"],
    "1000_episodes": ["--data.init_args.evaluation_episodes", "1000"],
}
"""What may explain a difference to the paper: a task with one is, for example, `frozenlake+adam`."""
METHODS = ("iif", "random_drop", "advantage_heuristic", "td_priority")
DROPPING = ("iif", "random_drop")
NAMES = ("SE_ave", "SE_peak", "RT_peak")


CURVES = Path(__file__).parent / "curves" / "iif.csv"
Name = tuple[str, str, int]
"""Task, method and seed."""


class Curve(NamedTuple):
    """The evaluations of a run, one per round."""

    returns: list[float]
    seconds: list[float]


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*PAPER, *(f"{task}+{variant}" for task in PAPER for variant in VARIANTS)]
    parser.add_argument("--tasks", nargs="+", choices=names, metavar="TASK", default=["frozenlake"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["iif", "random_drop"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100, help="of an evaluation")
    parser.add_argument("--rounds", type=int, help="instead of the task's own")
    parser.add_argument("--root", type=Path, default=Path("runs/iif"))
    parser.add_argument("--curves", type=Path, default=CURVES, help="the file of curves")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--figure", type=Path, help="write the learning curves into this file")
    parser.add_argument("--price", action="store_true", help="seconds of scoring and of optimisation")
    options = parser.parse_args()
    if options.price:
        print(price(rounds=options.rounds or 5))
        return
    curves = read_curves(options.curves)
    wanted = itertools.product(options.tasks, range(1, options.seeds + 1), ("ppo", *options.methods))
    for task, seed, method in () if options.table else wanted:
        if (task, method, seed) not in curves:
            curves[task, method, seed] = run(task, method, seed, options)
            write_curves(options.curves, curves)
    for line in table(curves, options.tasks, options.methods, seeds=options.seeds):
        print(line)
    if options.figure is not None:
        draw(curves, options.tasks, ("ppo", *options.methods), options.figure)


def run(task: str, method: str, seed: int, options: argparse.Namespace) -> Curve:
    """Begin or continue one run, unless it has ended; return its curve."""
    folder = options.root / task / method / f"seed{seed}"
    base, _, variant = task.partition("+")
    words = [
        "fit", "--task", base, "--method", method, "--seed_everything", str(seed),
        "--loop.run_dir", str(folder), "--loop.resume", "true", "--loop.progress_bar", "false",
        "--loop.evaluate_every_n_iterations", "1", "--data.init_args.evaluation_episodes", str(options.episodes),
        *VARIANTS.get(variant, ()),
    ]  # fmt: skip
    if method in DROPPING:
        words += ["--callbacks.init_args.rule.init_args.fraction", str(FRACTIONS[base])]
    if options.rounds is not None:
        words += ["--loop.max_iterations", str(options.rounds)]
    if not RunFolder(folder).has_ended():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "ippo_lightning.cli", *words], check=True, stdin=subprocess.DEVNULL)
    return curve_of(folder)


def curve_of(folder: Path) -> Curve:
    """Return the evaluations of a run that has ended."""
    found = RunFolder(folder)
    rows = {int(row["iteration"]): float(row["episode_return"]) for row in found.read_rows(EVALUATIONS)}
    seconds = [float(row["time/iteration_seconds"]) for row in found.read_rows(HISTORY)]
    return Curve([rows[number] for number in range(1, len(seconds) + 1)], seconds)


def read_curves(path: Path) -> dict[Name, Curve]:
    """Return the curves of a file by task, method and seed; none if there is no such file."""
    curves: dict[Name, Curve] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                name = row["task"], row["method"], int(row["seed"])
                curve = curves.setdefault(name, Curve([], []))
                curve.returns.append(float(row["return"]))
                curve.seconds.append(float(row["seconds"]))
    return curves


def write_curves(path: Path, curves: Mapping[Name, Curve]) -> None:
    """Write curves into a file, one line per round."""
    lines = ["task,method,seed,round,return,seconds"]
    for (task, method, seed), curve in sorted(curves.items()):
        rounds = enumerate(zip(*curve, strict=True), start=1)
        lines += [f"{task},{method},{seed},{number},{value:.6g},{seconds:.3g}" for number, (value, seconds) in rounds]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, "\n".join(lines) + "\n")


def table(curves: Mapping[Name, Curve], tasks: Sequence[str], methods: Sequence[str], *, seeds: int) -> list[str]:
    """Return the lines of a Markdown table, one per task and method: mean, interval and paper.

    Args:
        curves: by task, method and seed.
        tasks: of them.
        methods: each compared with `ppo`.
        seeds: 1 to this number; those without both runs are left out.
    """
    head = ["task", "method", "seeds", "mean return, minus PPO's", *(f"{name}, %" for name in NAMES), "never reached"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    numbers = range(1, seeds + 1)
    for task in tasks:
        pairs = {method: [((task, method, seed), (task, "ppo", seed)) for seed in numbers] for method in methods}
        others = [((task, "ppo", seed % seeds + 1), (task, "ppo", seed)) for seed in numbers if seeds > 1]
        for method, names in {**pairs, "ppo, next seed": others}.items():
            both = [(curves[own], curves[base]) for own, base in names if own in curves and base in curves]
            paper = PAPER.get(task, ()) if method == "iif" else ()
            lines.append(f"| {task} | {method} | {len(both)} | {row(both, paper)} |")
    return lines


def row(both: Sequence[tuple[Curve, Curve]], paper: Sequence[float]) -> str:
    """Return the cells of one line.

    Args:
        both: the curve of the method and that of PPO, one pair per seed.
        paper: its numbers for SE_ave, SE_peak and RT_peak; may be empty.
    """
    found = [
        efficiency(own.returns, base.returns, seconds=own.seconds, baseline_seconds=base.seconds) for own, base in both
    ]
    gains = [statistics.fmean(own.returns) - statistics.fmean(base.returns) for own, base in both]
    cells = [spread(gains, scale=1.0, digits=3)]
    for place, name in enumerate(NAMES):
        beside = f" (paper: {paper[place]})" if paper else ""
        cells.append(spread([getattr(one, name.lower()) for one in found]) + beside)
    never = f"{100 * statistics.fmean(one.never_reached for one in found):.0f} %" if found else "-"
    return " | ".join([*cells, never])


def spread(values: Sequence[float], *, scale: float = 100.0, digits: int = 1) -> str:
    """Return mean and 95 % interval; a seed that does not reach the level is counted and left out.

    Args:
        values: one per seed; NaN for one that does not reach the level.
        scale: of the numbers; 100 for per cent.
        digits: after the point.
    """
    reached = [scale * value for value in values if not math.isnan(value)]
    if not reached:
        return "-"
    missing = f", {len(values) - len(reached)} not reached" if len(reached) < len(values) else ""
    mean = statistics.fmean(reached)
    if len(reached) < 2:
        return f"{mean:.{digits}f}{missing}"
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(reached) - 1)) * statistics.stdev(reached) / math.sqrt(len(reached))
    return f"{mean:.{digits}f} [{mean - half:.{digits}f}, {mean + half:.{digits}f}]{missing}"


def draw(curves: Mapping[Name, Curve], tasks: Sequence[str], methods: Sequence[str], path: Path) -> None:
    """Draw the mean return over seeds after each round, with its 95 % interval, one panel per task.

    Args:
        curves: by task, method and seed.
        tasks: of them.
        methods: of them; one without a run is left out.
        path: of the figure.
    """
    import matplotlib.pyplot as plt
    import numpy as np
    from scipy import stats

    rows, columns = -(-len(tasks) // 2), min(len(tasks), 2)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(tasks) :]:
        axis.remove()
    for task, axis in zip(tasks, axes.flat, strict=False):
        for method in methods:
            runs = [curve.returns for (of_task, name, _), curve in curves.items() if (of_task, name) == (task, method)]
            if not runs:
                continue
            values, rounds = np.array(runs), np.arange(1, len(runs[0]) + 1)
            mean = values.mean(axis=0)
            axis.plot(rounds, mean, label=f"{method}, {len(runs)} seeds")
            if len(runs) > 1:
                half = stats.t.ppf(0.975, len(runs) - 1) * values.std(axis=0, ddof=1) / math.sqrt(len(runs))
                axis.fill_between(rounds, mean - half, mean + half, alpha=0.2, linewidth=0)
        axis.set(title=task, xlabel="round", ylabel="return of an evaluation")
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def price(rounds: int) -> dict[str, float]:
    """Return the median seconds of scoring 2048 records and of 10 epochs over all of them, and the ratio.

    Both are of the same rounds of one run of FrozenLake, whose filter only looks.

    Args:
        rounds: measured; one more warms up.
    """
    import torch
    from lightning import Fabric

    from ippo_lightning.callbacks import InfluenceFilter
    from ippo_lightning.data import ControlDataModule
    from ippo_lightning.engine import UpdateSettings
    from ippo_lightning.modules import ControlPPOModule, OptimizerSettings
    from ippo_lightning.rollouts import EnvironmentSettings
    from ippo_lightning.run.fabric_loop import FabricLoop
    from ippo_lightning.run.settings import LoopSettings
    from ippo_lightning.selection import DropNegatives, ReturnOfBuffer

    torch.set_num_threads(1)
    module = ControlPPOModule(
        environment=EnvironmentSettings(id="FrozenLake-v1", options={"is_slippery": False}),
        update=UpdateSettings(num_epochs=10, max_grad_norm=0.5),
        optimizer=OptimizerSettings(kind="sgd", learning_rate=5e-3),
    )
    watch = InfluenceFilter(rule=DropNegatives(fraction=0.5), target=ReturnOfBuffer(), monitor_only=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(run_dir=folder, progress_bar=False, test_at_end=False, evaluate_first=False)
        loop = FabricLoop(
            Fabric(accelerator="cpu", devices=1), module, ControlDataModule(), callbacks=[watch], settings=settings
        )
        loop.set_up()
        found = [module.training_step({"rollouts": 1}, number) for number in range(rounds + 1)][1:]
        module.close()
    scoring = statistics.median(numbers["time/influence_seconds"] for numbers in found)
    update = statistics.median(numbers["time/update_seconds"] for numbers in found)
    ratio = statistics.median(numbers["time/influence_seconds"] / numbers["time/update_seconds"] for numbers in found)
    return {"scoring": scoring, "optimisation": update, "ratio": ratio}


if __name__ == "__main__":
    main()
