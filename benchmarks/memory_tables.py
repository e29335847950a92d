"""The tables of docs/memory.md: every model, way of training, method and task of the paper, by arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ippo_lightning.modules.memory_estimate import (
    GIB,
    GPUS,
    MemoryEstimate,
    Method,
    RunSizes,
    estimate,
    first_pass_rows,
    rows_in,
    smallest_gpu,
)
from ippo_lightning.modules.memory_passes import Trained, Weights
from ippo_lightning.modules.model_shapes import SHAPES

TASKS = Path(__file__).resolve().parents[1] / "experiments" / "tasks"
PROMPT_TOKENS = {"gsm8k": 192, "college_math": 192, "math": 400, "olympiadbench": 600, "ecqa": 128}
"""A long prompt, as all of a batch are padded to the longest: the 99th percentile of the questions' characters in the
data sets, divided by 3, and 32 tokens for templates."""
SCORING_TOKENS = 2048
"""`scoring.max_tokens` of experiments/methods/ippo.yaml."""
DEFAULTS = {"micro_batch_size": 64, "minibatch_size": 64, "batch_size": 64, "evaluation_batch_size": 128}
TRAINED: dict[Trained, str] = {
    "full": "full, float32",
    "full_bf16": "full, bf16-mixed",
    "lora": "LoRA, bfloat16",
    "nf4": "LoRA on NF4",
}
LEAN = {"health_groups": 0}
"""Changes of I-PPO to its scores without groups of demonstrations."""
METHODS: dict[Method, str] = {"sft": "SFT", "ppo": "PPO", "ippo": "I-PPO"}


def sizes_of(task: str, method: Method) -> RunSizes:
    """Return the sizes of a task's file, or of its file for SFT.

    Args:
        task: stem of a file in `experiments/tasks`.
        method: which of both files.
    """
    path = TASKS / task / "sft.yaml" if method == "sft" else TASKS / f"{task}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    model, data = content["model"]["init_args"], DEFAULTS | content["data"]["init_args"]
    sampling: Mapping[str, Any] = model.get("evaluation" if method == "sft" else "sampling", {})
    update = DEFAULTS | (model if method == "sft" else model.get("update", {}))
    response, prompt = sampling["max_new_tokens"], PROMPT_TOKENS[task]
    width = prompt + response
    rows = min(update["micro_batch_size"], update["minibatch_size"])
    evaluated = data["evaluation_batch_size"] * sampling.get("num_responses", 1 if method == "sft" else 4)
    trained = 0 if method == "sft" else data["batch_size"] * sampling.get("num_responses", 4)
    return RunSizes(
        prompt=prompt,
        response=response,
        update_rows=first_pass_rows(width=width, at_most=rows),
        scoring_rows=rows_in(SCORING_TOKENS, width=width, at_most=2**20),
        target_rows=first_pass_rows(width=width, at_most=data["evaluation_batch_size"]),
        sampled_rows=max(evaluated, trained),
    )


def of_task(
    model: str, trained: Trained, method: Method, *, task: str, is_least: bool, **changes: Any
) -> MemoryEstimate:
    """Return the estimate of a run with the sizes of a task.

    Args:
        model: a key of `SHAPES`.
        trained: see `Trained`.
        method: see `Method`.
        task: a key of `PROMPT_TOKENS`.
        is_least: whether passes have one row.
        changes: more arguments of `estimate`.
    """
    sizes = sizes_of(task, method)
    weights = Weights(trained=trained, checkpointing=True)  # as in experiments/models
    return estimate(SHAPES[model], weights, method, sizes.least() if is_least else sizes, **changes)


def cell(found: MemoryEstimate) -> str:
    """Return GiB and the smallest GPU that fits."""
    gpu = smallest_gpu(found.peak)
    return f"{found.peak / GIB:.1f} → {gpu if gpu is not None else '**several**'}"


def model_rows(trained: Trained, *, task: str, is_least: bool) -> Iterator[str]:
    """Yield the lines of a table: a row per model, a column per method."""
    is_full = trained in ("full", "full_bf16")
    yield f"| {TRAINED[trained]} | " + " | ".join(METHODS.values()) + (" | I-PPO, lean |" if is_full else " |")
    yield "|---|" + "--:|" * (len(METHODS) + is_full)
    for model in SHAPES:
        found = [of_task(model, trained, method, task=task, is_least=is_least) for method in METHODS]
        if is_full:
            found.append(of_task(model, trained, "ippo", task=task, is_least=is_least, **LEAN))
        yield f"| {model} | " + " | ".join(map(cell, found)) + " |"


def task_rows(method: Method) -> Iterator[str]:
    """Yield the lines of a table of all tasks, with LoRA on bfloat16 weights."""
    yield f"| {METHODS[method]}, LoRA | " + " | ".join(PROMPT_TOKENS) + " |"
    yield "|---|" + "--:|" * len(PROMPT_TOKENS)
    for model in SHAPES:
        found = [of_task(model, "lora", method, task=task, is_least=False) for task in PROMPT_TOKENS]
        yield f"| {model} | " + " | ".join(map(cell, found)) + " |"


def size_rows() -> Iterator[str]:
    """Yield the lines of a table of the sizes."""
    yield "| task | prompt | response | rows of an update | of scores | of demonstrations | sampled at a time |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for task in PROMPT_TOKENS:
        sizes = sizes_of(task, "ippo")
        passes = [sizes.update_rows, sizes.scoring_rows, sizes.target_rows, sizes.sampled_rows]
        yield f"| {task} | {sizes.prompt} | {sizes.response} | " + " | ".join(map(str, passes)) + " |"


def saving_rows() -> Iterator[str]:
    """Yield the lines of a table: what each change saves on one example of full fine-tuning."""
    yield "| I-PPO on GSM8K, qwen3-1.7b, bf16-mixed, passes of one row | GiB | largest stage |"
    yield "|---|--:|---|"
    changes: dict[str, dict[str, Any]] = {
        "as in `methods/ippo.yaml`": {},
        "`health_every_n_iterations: 0`": {"health_groups": 0},
        "the same and `optimizer.kind: adamw_8bit`": {"health_groups": 0, "optimizer": "adamw_8bit"},
    }
    for words, change in changes.items():
        found = of_task("qwen3-1.7b", "full_bf16", "ippo", task="gsm8k", is_least=True, **change)
        yield f"| {words} | {found.peak / GIB:.1f} | {found.largest_stage} |"


def gpu_rows() -> Iterator[str]:
    """Yield the lines of a table of GPUs."""
    yield "| GB | for example |"
    yield "|--:|---|"
    for size, names in GPUS.items():
        yield f"| {size} | {names} |"


def tables() -> dict[str, str]:
    """Return each table of the page by its name."""
    found = {"gpus": gpu_rows(), "sizes": size_rows(), "saving": saving_rows()}
    for trained in TRAINED:
        found[f"least {trained}"] = model_rows(trained, task="gsm8k", is_least=True)
        if trained in ("lora", "nf4"):
            found[f"gsm8k {trained}"] = model_rows(trained, task="gsm8k", is_least=False)
    found["tasks"] = task_rows("ippo")
    return {name: "\n".join(lines) for name, lines in found.items()}


def rewritten_page(text: str) -> str:
    """Return a page in which the tables stand between their marks.

    Args:
        text: with `<!-- table: NAME -->` and `<!-- end -->` around each table.
    """
    for name, table in tables().items():
        mark = re.escape(f"<!-- table: {name} -->")
        text, count = re.subn(
            rf"{mark}.*?<!-- end -->", f"<!-- table: {name} -->\n{table}\n<!-- end -->", text, flags=re.DOTALL
        )
        assert count == 1, f"the page has {count} places for the table {name!r}"
    return text
