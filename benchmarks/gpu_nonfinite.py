"""The part `nonfinite` of benchmarks/gpu.py: a step that is NaN in bfloat16 alone, found and repeated by `ippo`."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from tiny_base import tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from ippo_lightning.cli.main import main

if TYPE_CHECKING:
    from gpu_parts import Rows

BREAKS = "policy.model.model.layers.1.mlp.down_proj"
"""The module that the replay has to name."""


def nonfinite(options: argparse.Namespace, rows: Rows) -> None:
    """Provoke the step, then repeat it as it was, in float32, and on the CPU."""
    scratch = Path(options.scratch)
    run = scratch / "nonfinite"
    config = scratch / "nonfinite.yaml"
    config.write_text(yaml.safe_dump(_experiment(options, run)), encoding="utf-8")
    code, _, said = _ippo("fit", "--config", str(config), "--loop.overwrite", "true")
    rows.add("run in bf16-mixed ends with 1 and names its step", value=f"{code}: {said[-1][:160] if said else ''}")
    ways: dict[str, tuple[list[str], bool]] = {
        "as it was": (["--device", options.device], True),
        "in float32": (["--device", options.device, "--precision", "32-true"], False),
        "on the CPU, bfloat16": (["--device", "cpu", "--precision", "bf16-mixed"], True),
        "on the CPU, float64": (["--device", "cpu", "--precision", "64-true"], False),
    }
    right = code == 1
    for name, (words, breaks) in ways.items():
        code, lines, said = _ippo("replay", str(run), *words)
        forward = re.search(r"forward: .*?(?= backward:)", " ".join(lines))
        found = forward[0] if forward else (said[-1] if said else "nothing")
        right = right and code == 0 and (BREAKS in found if breaks else "every module is finite" in found)
        rows.add(f"replay, {name}", value=found[:160])
    rows.add("the replays show where it breaks, and only in bfloat16", value=right)


def _ippo(*words: str) -> tuple[int, list[str], list[str]]:
    """Run a command in this process, whose imports are done; return its exit code and the lines of both outputs."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(words)
    return code, output.getvalue().splitlines(), [line for line in errors.getvalue().splitlines() if "ippo:" in line]


def _experiment(options: argparse.Namespace, run: Path) -> dict[str, Any]:
    sampling = {"num_responses": 1, "max_new_tokens": 8}
    base = _broken_base(Path(options.scratch))
    # The check of a new policy reads the weights in float32, where they are right.
    policy = {"pretrained": str(base), "value": "none", "reference": "none"}
    loop = {"run_dir": str(run), "max_iterations": 2, "evaluate_first": False, "evaluate_every_n_iterations": 0}
    return {
        "fabric": {"precision": "bf16-mixed", "accelerator": options.device, "devices": 1},
        "loop": {**loop, "test_at_end": False, "save_model": False, "progress_bar": False},
        "model": {
            "class_path": "ippo_lightning.SFTModule",
            "init_args": {
                "policy": {"class_path": "ippo_lightning.policies.CausalLMPolicy", "init_args": policy},
                "evaluation": sampling,
            },
        },
        "data": {
            "class_path": "ippo_lightning.data.TextDataModule",
            "init_args": {
                "task": {
                    "class_path": "ippo_lightning.tasks.ArithmeticTask",
                    "init_args": {"num_demonstrations": 64, "num_train": 64, "num_validation": 4, "num_test": 4},
                },
                "batch_size": 16,
                "stage": "sft",
            },
        },
    }


def _broken_base(scratch: Path) -> Path:
    """Write a model with a weight that bfloat16 rounds to infinity, behind a feature that is always 0.

    In float32 the weight adds 0 to every sum, and in bfloat16 it adds infinity times 0.
    """
    source, target = tiny_base(scratch / "tiny"), scratch / "tiny_broken"
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        mlp.up_proj.weight[3] = 0.0
        mlp.down_proj.weight[5, 3] = 3.4e38
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target
