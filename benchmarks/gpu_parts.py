"""The parts of benchmarks/gpu.py, each a process of its own: `python benchmarks/gpu_parts.py PART --rows FILE`."""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import large
import torch
from gpu import ROOT, add_row

from ippo_lightning.influence import target_gradient
from ippo_lightning.modules import PPOModule

PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes", "triton", "liger-kernel", "vllm")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 operations per second, from the makers' data sheets."""
METHODS = {
    "PPO": ["--method", "ppo"],
    "I-PPO": ["--method", "ippo"],
    "I-PPO, paper": ["--method", "paper"],
    "filter only": ["--method", "filter_only"],
    "random": ["--method", "random"],
}


class Rows:
    """Writes rows of one part as they come.

    Args:
        part: its name.
        file: of all rows.
    """

    def __init__(self, part: str, file: Path) -> None:
        self.part = part
        self.file = file

    def add(self, what: str, **fields: Any) -> None:
        """Write one row, numbers rounded."""
        rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in fields.items()}
        add_row(self.file, part=self.part, what=what, **rounded)


def versions(options: argparse.Namespace, rows: Rows) -> None:
    """Versions, the device, and the tests marked `gpu`."""
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    rows.add("python", value=platform.python_version())
    for name in PACKAGES:
        rows.add(name, value=installed.get(name, "-"))
    rows.add("device", value=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor())
    if options.device == "cuda":
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-x"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        rows.add("tests marked gpu", value=(done.stdout.strip().splitlines() or ["no output"])[-1])


def shape(options: argparse.Namespace, rows: Rows) -> None:
    """A Llama of 1B with random weights, LoRA r16, in bfloat16 and NF4: every stage of an iteration."""
    for weights in ("bfloat16", "nf4"):
        chosen = _shape_options(options, weights=weights)
        with tempfile.TemporaryDirectory() as folder:
            module = large.build(chosen, Path(folder))
            few = argparse.Namespace(**{**vars(chosen), "episodes": 4})
            stages(module, few, lambda *_, **__: None)  # warms up
            stages(module, chosen, partial(_add_stage, rows, weights))
        del module
        if options.device == "cuda":
            torch.cuda.empty_cache()


def _shape_options(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    full = {"shape": "1B", "episodes": 256, "prompt": 128, "response": 256, "micro_batch": 16, "vocab": 32000}
    tiny = {"shape": "tiny", "episodes": 8, "prompt": 8, "response": 8, "micro_batch": 4, "vocab": 128}
    chosen = {**(tiny if options.tiny else full), "key_value_heads": 4, "cache": "dynamic", "weights": "bfloat16"}
    return argparse.Namespace(**{**chosen, "gradient_checkpointing": False, "device": options.device, **changes})


def stages(module: PPOModule, chosen: argparse.Namespace, report: Callable[..., None]) -> None:
    """Run one iteration stage by stage.

    Args:
        module: on the device.
        chosen: sizes.
        report: called after each stage with its name, seconds, GiB, tokens, and forward passes that its work is worth.
    """
    from ippo_lightning.engine import run_update
    from ippo_lightning.records import UpdatePlan

    meter = large.Meter(chosen.device)

    def timed(name: str, work: Callable[[], Any], *, tokens: int, passes: float) -> Any:
        result = meter.take(name, work)
        report(name, **meter.rows[name], tokens=tokens, passes=passes, module=module)
        return result

    tokens = chosen.episodes * (chosen.prompt + chosen.response)
    batch = large.prompts_of(chosen)
    # sampling reads each token once; then the policy and the reference score all of them
    sampled = timed("rollout", lambda: module.rollout(module.plan_rollout(batch)), tokens=tokens, passes=3)
    episodes = module.compute_advantages(module.compute_rewards(sampled))
    score = partial(module.score, episodes.select(torch.arange(min(16, len(episodes)), device=episodes.device)))
    with torch.no_grad():
        timed("log-probs", score, tokens=tokens * min(16, len(episodes)) // len(episodes), passes=1)
    prompts = batch["prompts"][:16]
    texts = {"prompts": prompts, "responses": [("7+12=19;" * chosen.response)[: chosen.response]] * len(prompts)}
    loss = partial(target_gradient, module, lambda model, part: model.validation_loss(part), [texts])
    direction = timed("target gradient", loss, tokens=len(prompts) * (chosen.prompt + chosen.response), passes=2)
    for way, passes in (("hooks", 2), ("finite_difference", 1), ("per_episode", 2)):
        rows = min(16, len(episodes)) if way == "per_episode" else len(episodes)
        part = episodes.select(torch.arange(rows, device=episodes.device))
        work = partial(large.scored, module, part, direction, way=way, size=chosen.micro_batch)
        timed(f"scores: {way}", work, tokens=rows * (chosen.prompt + chosen.response), passes=passes)
    plan = UpdatePlan(episodes=episodes)
    plan.sealed = True
    update = partial(run_update, module, plan, module.update_settings)
    timed("update, 2 epochs", update, tokens=2 * tokens, passes=2)


def _add_stage(
    rows: Rows, weights: str, name: str, *, seconds: float, gib: float, tokens: int, passes: float, module: PPOModule
) -> None:
    """Write a stage. A forward is worth 2 operations per weight and token, a backward to the adapters as much."""
    shape = large.SHAPES["1B"]
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    weights_in_layers = layers * (2 * hidden * hidden + 2 * hidden * hidden // 8 + 3 * hidden * inner)
    peak = _peak_flops()
    worth = 2.0 * weights_in_layers * tokens * passes
    used = worth / seconds / peak if peak else float("nan")
    rows.add(f"{weights}, {name}", seconds=seconds, gib=gib, tokens_per_second=tokens / seconds, utilisation=used)


def _peak_flops() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)


def vocabulary(options: argparse.Namespace, rows: Rows) -> None:
    """Peak memory of log-probs, scores and update with a vocabulary of 4k and of 128k, beside the weights."""
    for vocab in (128, 1024) if options.tiny else (4096, 131072):
        sizes = {"episodes": 16, "prompt": 64, "response": 192, "micro_batch": 16, "shape": "1B"}
        sizes = {} if options.tiny else sizes
        chosen = _shape_options(options, vocab=vocab, **sizes)
        with tempfile.TemporaryDirectory() as folder:
            module = large.build(chosen, Path(folder))
            held = torch.cuda.memory_allocated() / 2**30 if options.device == "cuda" else float("nan")

            def report(
                name: str, *, gib: float, seconds: float, vocab: int = vocab, held: float = held, **_: Any
            ) -> None:
                rows.add(f"{name}, vocabulary {vocab}", seconds=seconds, gib=gib - held)

            stages(module, chosen, report)
        del module


def sft(options: argparse.Namespace, rows: Rows) -> None:
    """300 steps of supervised fine-tuning in bf16-mixed; if a number becomes NaN, batch and state are kept."""
    steps = 2 if options.tiny else 300
    precision = "bf16-mixed" if options.device == "cuda" else "32-true"
    words = ["--base", "sft", "--task", "word_problems"]
    words += ["--model.init_args.policy.init_args.lora", "null", "--fabric.precision", precision]
    words += ["--model.init_args.optimizer.learning_rate", "1e-4", "--data.init_args.batch_size", "32"]
    words += ["--loop.max_iterations", str(steps), "--loop.evaluate_every_n_iterations", "0"]
    words += ["--loop.test_at_end", "false", "--loop.save_model", "false"]
    folder = rows.file.parent / "sft"
    last = _fit(options, words, folder)
    history = _history(folder)
    losses = [row["sft/loss"] for row in history]
    rows.add("steps", value=len(history))
    if losses:
        rows.add("loss of the first and the last step", value=f"{losses[0]:.3f}, {losses[-1]:.3f}")
        rows.add(
            "seconds of a step", seconds=sorted(row["time/iteration_seconds"] for row in history)[len(history) // 2]
        )
    if last:
        rows.add("stopped", value=last)


def word_problems(options: argparse.Namespace, rows: Rows) -> None:
    """PPO and I-PPO in four forms from the adapter that comes with the package, one seed each, side by side."""
    iterations = 2 if options.tiny else 20
    precision = "bf16-mixed" if options.device == "cuda" else "32-true"
    common = ["--task", "word_problems", "--fabric.precision", precision]
    common += ["--loop.max_iterations", str(iterations), "--loop.evaluate_every_n_iterations", str(iterations // 2)]
    common += ["--loop.save_model", "false", "--loop.test_at_end", "false"]
    if options.tiny:
        common += ["--data.init_args.batch_size", "2", "--data.init_args.task.init_args.num_validation", "4"]
    # two at a time: sampling leaves half of the device idle
    waiting = list(METHODS.items())
    while waiting:
        started = [
            (name, *_start(options, [*common, *words], rows.file.parent / _folder(name))) for name, words in waiting[:2]
        ]
        waiting = waiting[2:]
        for name, process, folder in started:
            process.wait()
            _report_curve(rows, name, folder)


def _folder(name: str) -> str:
    return "word_problems_" + re.sub(r"\W+", "_", name.lower())


def _report_curve(rows: Rows, name: str, folder: Path) -> None:
    file = folder / "evaluations.jsonl"
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    for metric in ("exact_match", "unfaithful_fraction"):
        curve = [round(row[metric], 3) for row in found if metric in row]
        rows.add(f"{name}, {metric}", value=" ".join(map(str, curve)))
    seconds = [row["time/iteration_seconds"] for row in _history(folder)]
    if seconds:
        rows.add(f"{name}, iterations", value=len(seconds), seconds=sum(seconds) / len(seconds))


def _start(options: argparse.Namespace, words: list[str], folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    given = ["--model.init_args.policy.init_args.pretrained", options.model, "--loop.run_dir", str(folder)]
    given += ["--data.init_args.task.init_args.path", f"{options.data}/easy_arithmetic", "--loop.progress_bar", "false"]
    given += ["--fabric.accelerator", "cuda" if options.device == "cuda" else "cpu", "--loop.overwrite", "true"]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ippo_lightning.cli", "fit", *words, *given]
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log), folder


def _fit(options: argparse.Namespace, words: list[str], folder: Path) -> str:
    """Run `ippo fit`; return its last line if it failed."""
    process, _ = _start(options, words, folder)
    if process.wait() == 0:
        return ""
    lines = folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"


def _history(folder: Path) -> list[dict[str, Any]]:
    file = folder / "history.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


PARTS = {"versions": versions, "shape": shape, "vocabulary": vocabulary, "sft": sft, "word_problems": word_problems}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--rows", required=True, help="file that rows are appended to")
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    rows = Rows(options.part, Path(options.rows).resolve())
    start = time.monotonic()
    PARTS[options.part](options, rows)
    rows.add("whole part", seconds=time.monotonic() - start)


if __name__ == "__main__":
    main()
