r"""Whether IIF reaches a return sooner than PPO, beside the paper's numbers and with the random-drop control.

    python benchmarks/iif.py --tasks frozenlake --seeds 5                # runs what is missing, then prints the table
    python benchmarks/iif.py --tasks frozenlake acrobot minigrid lunarlander --seeds 5
    python benchmarks/iif.py --tasks frozenlake --table                  # only the table, of the runs that ended
    python benchmarks/iif.py --price                                     # scoring beside the optimisation of a round

Each run is `ippo fit` in a process of its own, in a folder of its own, and resumes if it was interrupted. Each seed of
a method is compared with the same seed of PPO; an interval is Student's, at 95 %, over the seeds. An evaluation
plays 100 episodes after each round and not the paper's 1000, with actions drawn from the policy as there. On a CPU core
of its own, a run of FrozenLake takes a few minutes, and one of LunarLander about an hour.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ippo_lightning.metrics import efficiency
from ippo_lightning.storage.run_folder import EVALUATIONS, HISTORY, RunFolder

FRACTIONS = {"frozenlake": 0.5, "acrobot": 0.5, "highway": 0.5, "minigrid": 0.125, "lunarlander": 0.125,
             "bipedalwalker": 0.0625}  # fmt: skip
"""Of the negatives, which the paper drops."""
PAPER = {
    "frozenlake": (34.0, 19.2, 29.5), "acrobot": (36.7, 48.5, 55.2), "minigrid": (65.8, 61.7, 69.1),
    "highway": (37.7, 55.1, 59.9), "lunarlander": (26.0, 39.7, 44.9), "bipedalwalker": (31.0, 26.2, 29.2),
}  # fmt: skip
"""SE_ave, SE_peak and RT_peak of IIF, in per cent (Hu et al. 2025, arXiv 2505.19281)."""
METHODS = ("iif", "random_drop", "advantage_heuristic", "td_priority")
DROPPING = ("iif", "random_drop")
NAMES = ("SE_ave", "SE_peak", "RT_peak")


class Curve(NamedTuple):
    """The evaluations of a run, one per round."""

    returns: list[float]
    seconds: list[float]


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted(PAPER), default=["frozenlake"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["iif", "random_drop"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100, help="of an evaluation")
    parser.add_argument("--rounds", type=int, help="instead of the task's own")
    parser.add_argument("--root", type=Path, default=Path("runs/iif"))
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--price", action="store_true", help="seconds of scoring and of optimisation")
    options = parser.parse_args()
    if options.price:
        print(price(rounds=options.rounds or 5))
        return
    for task in options.tasks:
        for seed in range(1, options.seeds + 1):
            for method in ("ppo", *options.methods):
                if not options.table:
                    run(task, method, seed, options)
    for line in table(options.root, options.tasks, options.methods, seeds=options.seeds):
        print(line)


def run(task: str, method: str, seed: int, options: argparse.Namespace) -> None:
    """Begin or continue one run, unless it has ended."""
    folder = folder_of(options.root, task, method, seed)
    if RunFolder(folder).has_ended():
        return
    words = [
        "fit", "--task", task, "--method", method, "--seed_everything", str(seed),
        "--loop.run_dir", str(folder), "--loop.resume", "true", "--loop.progress_bar", "false",
        "--loop.evaluate_every_n_iterations", "1", "--data.init_args.evaluation_episodes", str(options.episodes),
    ]  # fmt: skip
    if method in DROPPING:
        words += ["--callbacks.init_args.rule.init_args.fraction", str(FRACTIONS[task])]
    if options.rounds is not None:
        words += ["--loop.max_iterations", str(options.rounds)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "ippo_lightning.cli", *words], check=True, stdin=subprocess.DEVNULL)


def folder_of(root: Path, task: str, method: str, seed: int) -> Path:
    """Return the folder of a run."""
    return root / task / method / f"seed{seed}"


def curve_of(folder: Path) -> Curve | None:
    """Return the evaluations of a run that has ended, else None."""
    found = RunFolder(folder)
    if not found.has_ended():
        return None
    rows = {int(row["iteration"]): float(row["episode_return"]) for row in found.read_rows(EVALUATIONS)}
    seconds = [float(row["time/iteration_seconds"]) for row in found.read_rows(HISTORY)]
    return Curve([rows[number] for number in range(1, len(seconds) + 1)], seconds)


def table(root: Path, tasks: Sequence[str], methods: Sequence[str], *, seeds: int) -> list[str]:
    """Return the lines of a Markdown table, one per task and method: mean, interval and paper, in per cent.

    Args:
        root: of the runs.
        tasks: of them.
        methods: each compared with `ppo`.
        seeds: 1 to this number; those without both runs are left out.
    """
    lines = [
        f"| task | method | seeds | {' | '.join(NAMES)} | levels never reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        for method in methods:
            found = []
            for seed in range(1, seeds + 1):
                own, other = (curve_of(folder_of(root, task, name, seed)) for name in (method, "ppo"))
                if own is not None and other is not None:
                    seconds = {"seconds": own.seconds, "baseline_seconds": other.seconds}
                    found.append(efficiency(own.returns, other.returns, **seconds))
            cells = []
            for place, name in enumerate(NAMES):
                paper = f" (paper: {PAPER[task][place]})" if method == "iif" else ""
                cells.append(spread([getattr(one, name.lower()) for one in found]) + paper)
            never = statistics.fmean(one.never_reached for one in found) if found else math.nan
            lines.append(f"| {task} | {method} | {len(found)} | {' | '.join(cells)} | {100 * never:.0f} % |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Return mean and 95 % interval in per cent; a seed that does not reach the level is counted and left out."""
    reached = [100 * value for value in values if not math.isnan(value)]
    if not reached:
        return "-"
    missing = f", {len(values) - len(reached)} not reached" if len(reached) < len(values) else ""
    mean = statistics.fmean(reached)
    if len(reached) < 2:
        return f"{mean:.1f}{missing}"
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(reached) - 1)) * statistics.stdev(reached) / math.sqrt(len(reached))
    return f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}]{missing}"


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
