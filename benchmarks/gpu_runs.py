"""The parts `sft` and `word_problems` of benchmarks/gpu.py: training runs of the command line, with their curves."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from gpu import ROOT, environment
from tiny_base import tiny_base

if TYPE_CHECKING:
    from gpu_parts import Rows

METHODS = {
    "PPO": "ppo",
    "I-PPO": "ippo",
    "I-PPO, paper": "paper",
    "filter only": "filter_only",
    "random": "random",
}
POLICY = "--model.init_args.policy.init_args"
TASK = "--data.init_args.task.init_args"


class Run:
    """One training run in a process of its own.

    Args:
        words: of `ippo fit`.
        folder: of the run.
    """

    def __init__(self, words: list[str], folder: Path) -> None:
        self.folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.log = folder.with_suffix(".log")
        command = [sys.executable, "-m", "ippo_lightning.cli", "fit", *words, "--loop.run_dir", str(folder)]
        with self.log.open("wb") as log:
            # In the group of the part, which benchmarks/gpu.py ends as a whole.
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the complete lines of one of the run's files."""
        file = self.folder / name
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def end(self) -> str:
        """Return how the run ended; it is ended if it still runs."""
        code = self.process.poll()
        if code is None:
            self.process.kill()
            self.process.wait()
            return "cut off"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "complete" if code == 0 else (lines[-1] if lines else f"exit code {code}")


def sft(options: argparse.Namespace, rows: Rows) -> None:
    """300 steps of supervised fine-tuning in bf16-mixed; a step with NaN is repeated in other ways."""
    steps = 2 if options.tiny else 300
    overlay = _overlay(options, "sft", full=True)
    words = ["--base", "sft", "--task", "word_problems", "--config", str(overlay), *_common(options)]
    words += ["--model.init_args.optimizer.learning_rate", "1e-4"]
    words += ["--data.init_args.batch_size", "2" if options.tiny else "32"]
    words += ["--loop.max_iterations", str(steps), "--loop.evaluate_every_n_iterations", "0"]
    run = Run(words, Path(options.scratch) / "sft")
    for _ in _until(options, [run]):
        _report_sft(rows, run)
    rows.add("run", value=run.end()[-300:])
    _report_sft(rows, run)
    failed = sorted((run.folder / "nonfinite").glob("step_*.pt"))
    if failed:  # at most one, because it ends the run
        try:
            _report_failed_step(options, rows, failed[0])
        except Exception as error:  # the step's rows above stay, and so does the small file
            rows.fail("failed step, repeated", error)


def _report_sft(rows: Rows, run: Run) -> None:
    history = run.rows("history.jsonl")
    if not history:
        return
    losses = [row["sft/loss"] for row in history]
    norms = [row["sft/gradient_norm"] or float("nan") for row in history]
    rows.add("steps in bf16-mixed", value=len(history))
    rows.add("loss of the first and the last step", value=f"{losses[0]:.3f}, {losses[-1]:.3f}")
    rows.add("largest norm of a gradient", value=f"{max(norms):.3f}")
    seconds = sorted(row["time/iteration_seconds"] for row in history)
    rows.add("median step", seconds=seconds[len(seconds) // 2])


def _report_failed_step(options: argparse.Namespace, rows: Rows, file: Path) -> None:
    """Repeat a failed step as it was, with other kernels of attention, and in float32."""
    from ippo_lightning.modules import SFTModule, read_failed_step, replay_failed_step
    from ippo_lightning.policies import CausalLMPolicy
    from ippo_lightning.policies.attention_kernels import require_right_attention

    step = read_failed_step(file)
    first = step["calls"][step["failed_pass"] or 0][0]["fields"]
    width = first["prompt_ids"].shape[1] + first["response_ids"].shape[1]
    rows.add("failed step", value=f"{step['parameter']}, rows {step['rows']}, width {width}")
    # Without the parameters it is small enough to be copied back.
    torch.save({**step, "parameters": {}}, rows.file.parent / file.name)
    policy = CausalLMPolicy(pretrained=_pretrained(options), value="none", reference="none", self_check=False)
    module = SFTModule(policy=policy).to(options.device)
    # The first pass on a device turns a broken kernel off; here it is turned on again, to see what it does.
    require_right_attention(policy.device)
    cudnn = torch.backends.cuda.enable_cudnn_sdp
    for name, uses_cudnn, dtype in (
        ("as it was", True, step["autocast"]),
        ("without cuDNN's attention", False, step["autocast"]),
        ("in float32", True, None),
    ):
        cudnn(uses_cudnn)
        rows.add(f"failed step, {name}", value=str(replay_failed_step(module, {**step, "autocast": dtype})))


def word_problems(options: argparse.Namespace, rows: Rows) -> None:
    """PPO and I-PPO in four forms from the adapter that comes with the package, one seed each, side by side."""
    iterations, every = (2, 1) if options.tiny else (16, 4)
    common = ["--task", "word_problems", *_common(options), "--config", str(_overlay(options, "ppo", full=False))]
    common += ["--loop.max_iterations", str(iterations), "--loop.evaluate_every_n_iterations", str(every)]
    if options.tiny:
        common += ["--data.init_args.batch_size", "2", f"{TASK}.num_validation", "4"]
        common += [f"{TASK}.num_influence_demonstrations", "8", "--model.init_args.sampling.num_responses", "4"]
    started: dict[str, Run] = {}
    # On a GPU all at once: sampling of a small model leaves most of it idle. A CPU has no idle part.
    for group in [list(METHODS)] if options.device == "cuda" else [[name] for name in METHODS]:
        for name in group:
            folder = Path(options.scratch) / ("word_problems_" + re.sub(r"\W+", "_", name.lower()))
            started[name] = Run([*common, "--method", METHODS[name]], folder)
        for _ in _until(options, [started[name] for name in group]):
            for name in group:
                _report_curve(rows, name, started[name])
    for name, run in started.items():
        rows.add(f"{name}, run", value=run.end()[-300:])
        _report_curve(rows, name, run)


def _report_curve(rows: Rows, name: str, run: Run) -> None:
    evaluations, history = run.rows("evaluations.jsonl"), run.rows("history.jsonl")
    for metric in ("exact_match", "unfaithful_fraction"):
        curve = [row[metric] for row in evaluations if metric in row]
        said = " ".join("-" if number is None else f"{number:.3f}" for number in curve)
        if curve:
            rows.add(f"{name}, {metric}", value=said)
    if history:
        seconds = [row["time/iteration_seconds"] for row in history]
        rows.add(f"{name}, iterations", value=len(history), seconds=sum(seconds) / len(seconds))


def _until(options: argparse.Namespace, runs: list[Run]) -> Iterator[None]:
    """Yield whenever a run has new lines, until all have ended or the time is over."""
    written = -1
    while any(run.process.poll() is None for run in runs) and time.monotonic() < options.deadline:
        lines = sum(len(run.rows("evaluations.jsonl")) + len(run.rows("history.jsonl")) // 10 for run in runs)
        if lines != written:
            written = lines
            yield
        time.sleep(1.0)


def _common(options: argparse.Namespace) -> list[str]:
    is_gpu = options.device == "cuda"
    words = ["--fabric.precision", "bf16-mixed" if is_gpu or options.tiny else "32-true"]
    words += ["--fabric.accelerator", "cuda" if is_gpu else "cpu", "--fabric.devices", "1"]
    words += [f"{TASK}.path", f"{options.data}/easy_arithmetic", "--loop.overwrite", "true"]
    words += ["--loop.progress_bar", "false", "--loop.save_model", "false", "--loop.test_at_end", "false"]
    return [*words, "--loop.checkpoint_every_n_iterations", "0"]


def _overlay(options: argparse.Namespace, name: str, *, full: bool) -> Path:
    """Write a configuration with the model: null stands in a file only, and a tiny model has an adapter of its own."""
    policy: dict[str, Any] = {"pretrained": _pretrained(options)}
    if options.model == "tiny":
        policy["lora"] = {"r": 4, "adapter_path": None}
    if full:
        policy["lora"] = None
    file = Path(options.scratch) / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"model": {"init_args": {"policy": {"init_args": policy}}}}), encoding="utf-8")
    return file


def _pretrained(options: argparse.Namespace) -> str:
    """Return what `policy.pretrained` names; a tiny model is made first."""
    return str(tiny_base(Path(options.scratch) / "tiny")) if options.model == "tiny" else str(options.model)
