"""What each way to use several ranks costs: seconds of the stages, and the memory of the fullest rank.

    python benchmarks/ranks.py                        # two processes on a CPU, about 2 minutes on 2 cores
    python benchmarks/ranks.py --accelerator gpu --devices 8

The arithmetic experiment with the influence filter; every rank samples 256 episodes per iteration. One run after
another; the first iteration, which warms up, does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EXPERIMENT = ("--task", "arithmetic", "--method", "ippo")
COLUMNS = {
    "rollout, s": "time/rollout_seconds",
    "scores, s": "time/scoring_seconds",
    "update, s": "time/update_seconds",
    "iteration, s": "time/iteration_seconds",
    "parameters, MiB": "memory/parameters_mib",
    "optimizer, MiB": "memory/optimizer_mib",
}
SHARDED = "ippo_lightning.run.fsdp_strategy.ShardedStrategy"


def ways(devices: int) -> dict[str, list[str]]:
    """Return the command-line arguments of each way."""
    several = ["--fabric.devices", str(devices)]
    layer_by_layer = [f"--fabric.strategy={SHARDED}", "--fabric.strategy.gather_for_sampling=false"]
    return {
        "one process": ["--fabric.devices", "1"],
        f"ddp, {devices}": [*several, "--fabric.strategy", "ddp"],
        f"fsdp2, {devices}": [*several, "--fabric.strategy", "fsdp2"],
        f"fsdp2 layer by layer, {devices}": [*several, *layer_by_layer],
    }


def measure(arguments: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Run one way; return the median of each column."""
    with tempfile.TemporaryDirectory() as folder:
        loop = {
            "run_dir": f"{folder}/run",
            "max_iterations": options.iterations + 1,
            "evaluate_every_n_iterations": 0,
            "evaluate_first": False,
            "test_at_end": False,
            "save_model": False,
            "progress_bar": False,
        }
        settings = [f"--loop.{name}={str(value).lower()}" for name, value in loop.items() if name != "run_dir"]
        settings += ["--loop.run_dir", loop["run_dir"], f"--fabric.accelerator={options.accelerator}"]
        command = [sys.executable, "-m", "ippo_lightning.cli", "fit", *EXPERIMENT, *settings, *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={**os.environ}
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        lines = (Path(folder) / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    return {title: statistics.median(row[key] for row in rows) for title, key in COLUMNS.items()}


def main() -> None:
    """Measure every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--json", help="file for the numbers")
    options = parser.parse_args()
    found = {name: measure(arguments, options) for name, arguments in ways(options.devices).items()}
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'--:|' * len(COLUMNS)}")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(f'{row[title]:.2f}' for title in COLUMNS)} |")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
