"""Is the estimate of memory right? Peaks of shrunken models beside what the arithmetic gives.

    python benchmarks/memory.py                        # 60 cases, about 15 minutes on one core
    python benchmarks/memory.py --shapes wide gqa --trained lora --methods ippo
    python benchmarks/memory.py --write                # only writes the tables of docs/memory.md again

Each number is the growth of the resident set, in a process of its own, over what is resident after the same run with a
model of a few thousand weights. A case trains for three iterations, so that Adam's moments exist and demonstrations are
compared in groups in two of them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from lightning import Callback
from lightning.fabric import Fabric, seed_everything
from memory_tables import rewritten_page
from rich.console import Console
from rich.table import Table
from vocabulary import _MMAP_THRESHOLD, resident

from ippo_lightning import FabricLoop, PPOModule, SFTModule
from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.data import TextDataModule, byte_tokenizer
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.modules.memory_estimate import Method, RunSizes, estimate
from ippo_lightning.modules.memory_passes import Trained, Weights
from ippo_lightning.modules.model_shapes import ModelShape
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.tasks import Grade

MIB = 2**20
PAGE = Path("docs/memory.md")
_COMMON: dict[str, Any] = {"source": "", "model_type": "llama", "tied": True}
SHAPES = {
    "wide": ModelShape(
        **_COMMON | {"tied": False},
        layers=2, hidden=768, intermediate=3072, heads=12, kv_heads=12, head_dim=64, vocabulary=2048,
    ),
    "deep": ModelShape(
        **_COMMON, layers=16, hidden=256, intermediate=1024, heads=8, kv_heads=8, head_dim=32, vocabulary=2048
    ),
    "large vocabulary": ModelShape(
        **_COMMON, layers=4, hidden=256, intermediate=1024, heads=4, kv_heads=4, head_dim=64, vocabulary=65536
    ),
    "gqa": ModelShape(
        **_COMMON | {"model_type": "qwen3"},
        layers=6, hidden=512, intermediate=1536, heads=8, kv_heads=2, head_dim=64, vocabulary=8192,
    ),
    "gemma": ModelShape(
        **_COMMON | {"model_type": "gemma2"},
        layers=6, hidden=384, intermediate=1536, heads=4, kv_heads=2, head_dim=96, vocabulary=16384,
    ),
}  # fmt: skip
NOTHING = replace(
    SHAPES["deep"], layers=1, hidden=32, intermediate=32, heads=2, kv_heads=2, head_dim=16, vocabulary=300
)
"""What is resident after a run of this size is not of the model: code, thread pools, caches of Python."""
SIZES = RunSizes(prompt=72, response=24, update_rows=8, scoring_rows=8, target_rows=8, sampled_rows=16)
GROUPS = 8


class FixedTexts:
    """Prompts and responses of exactly so many bytes, which are tokens."""

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Return as many rows as a batch has."""
        count = SIZES.target_rows if split == "influence" else SIZES.sampled_rows
        rows = [{"prompt": chr(97 + number) * SIZES.prompt, "example": {}} for number in range(count)]
        if split in ("demonstrations", "influence"):
            rows = [{**row, "response": "b" * (SIZES.response - 1)} for row in rows]  # the last token is the end
        return rows

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        """Call half of the responses right."""
        return Grade(len(response) % 2 == 0)


def policy_of(shape: ModelShape, trained: Trained, method: Method, *, checkpointing: bool = False) -> CausalLMPolicy:
    """Return a policy with random weights; a quantised one is loaded from a folder that is then removed."""
    settings: dict[str, Any] = {"tokenizer": byte_tokenizer(), "self_check": False}
    settings |= {"gradient_checkpointing": checkpointing}
    settings |= {"value": "none", "reference": "none"} if method == "sft" else {}
    config = {**shape.config(), "max_position_embeddings": SIZES.width}
    if trained in ("full", "full_bf16"):
        return CausalLMPolicy(config=config, **settings)
    settings |= {"lora": LoraSettings(r=8), "dtype": "bfloat16"}
    if trained == "lora":
        return CausalLMPolicy(config=config, **settings)
    with tempfile.TemporaryDirectory() as folder:
        plain = CausalLMPolicy(
            config=config, tokenizer=byte_tokenizer(), dtype="bfloat16", value="none", reference="none"
        )
        plain.save_pretrained(folder)
        del plain
        return CausalLMPolicy(pretrained=folder, quantization="nf4", **settings)


def loop_of(
    shape: ModelShape, trained: Trained, method: Method, *, folder: str, checkpointing: bool = False
) -> FabricLoop:
    """Return a run of three iterations."""
    policy = policy_of(shape, trained, method, checkpointing=checkpointing)
    evaluation = SamplingSettings(max_new_tokens=SIZES.response)
    module: SFTModule | PPOModule
    callbacks: list[Callback] = []
    if method == "sft":
        module = SFTModule(policy=policy, evaluation=evaluation, micro_batch_size=SIZES.update_rows)
    else:
        update = UpdateSettings(num_epochs=1, minibatch_size=16, micro_batch_size=SIZES.update_rows)
        sampling = SamplingSettings(num_responses=2, max_new_tokens=SIZES.response)
        module = PPOModule(policy=policy, evaluation=evaluation, sampling=sampling, update=update)
    if method == "ippo":
        scoring = ScoringSettings(
            adam_aware=True,
            health_groups=GROUPS,
            health_every_n_iterations=2,
            max_tokens=SIZES.scoring_rows * SIZES.width,
        )
        callbacks = [InfluenceFilter(scoring=scoring, min_keep=SIZES.sampled_rows)]
    # Two micro-batches per step, so that gradients exist beside the activations of the second.
    data = TextDataModule(
        FixedTexts(),
        stage="sft" if method == "sft" else "rl",
        batch_size=SIZES.update_rows * (2 if method == "sft" else 1),
        evaluation_batch_size=SIZES.target_rows,
    )
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if trained == "full_bf16" else "32-true")
    settings = LoopSettings(
        run_dir=folder,
        max_iterations=3,
        evaluate_every_n_iterations=0,
        evaluate_first=False,
        test_at_end=False,
        checkpoint_every_n_iterations=0,
        save_model=False,
        progress_bar=False,
    )
    return FabricLoop(fabric, module, data, callbacks=callbacks, settings=settings)


def measured(*, shape: str, trained: Trained, method: Method, checkpointing: bool) -> dict[str, float]:
    """Return the growth of the resident set in bytes, and the seconds of the run.

    Args:
        shape: a key of `SHAPES`.
        trained: see `Trained`.
        method: see `Method`.
        checkpointing: whether the backward computes the layers again.
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)  # blocks go back when they are freed, so what is resident is what is in use

    def run(size: ModelShape) -> tuple[float, float]:
        file_pages = resident("RssFile")
        seed_everything(1, verbose=False)
        with tempfile.TemporaryDirectory() as folder:
            loop = loop_of(size, trained, method, folder=folder, checkpointing=checkpointing)
            gc.collect()
            libc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to the present
            start = time.perf_counter()
            # Weights that were loaded are pages of their file on a CPU, also where 4 bits have taken their place.
            file_pages = resident("RssFile") - file_pages
            loop.fit()
            return resident("VmHWM") - file_pages, time.perf_counter() - start

    run(NOTHING)
    gc.collect()
    libc.malloc_trim(0)
    before = resident("VmRSS")
    peak, seconds = run(SHAPES[shape])
    return {"bytes": peak - before, "seconds": seconds}


def in_own_process(**case: Any) -> dict[str, float]:
    """Return what a case takes in a fresh process."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def estimated(*, shape: str, trained: Trained, method: Method, checkpointing: bool) -> float:
    """Return the estimate for a case in bytes; arguments as in `measured`."""
    sizes = replace(SIZES, sampled_rows=0) if method == "sft" else SIZES
    weights = Weights(trained=trained, checkpointing=checkpointing)
    return estimate(SHAPES[shape], weights, method, sizes, health_groups=GROUPS).peak


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the chosen cases, print a table, return its rows."""
    table = Table("shape", "trained", "method", "estimate, MiB", "measured, MiB", "ratio", "seconds")
    rows = []
    for shape in options.shapes:
        for trained in options.trained:
            for method in options.methods:
                case: dict[str, Any] = {"shape": shape, "trained": trained, "method": method}
                case |= {"checkpointing": options.checkpointing}
                found, expected = in_own_process(**case), estimated(**case)
                ratio = expected / found["bytes"]
                rows.append({**case, "estimate": expected, **found, "ratio": ratio})
                numbers = [f"{expected / MIB:.0f}", f"{found['bytes'] / MIB:.0f}", f"{ratio:.2f}"]
                table.add_row(shape, trained, method, *numbers, f"{found['seconds']:.0f}")
                print(shape, trained, method, *numbers, file=sys.stderr, flush=True)
    Console(width=110).print(table)
    ratios = [row["ratio"] for row in rows]
    print(f"estimate / measured: {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} cases")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--trained", nargs="+", choices=get_args(Trained), default=list(get_args(Trained)))
    parser.add_argument("--methods", nargs="+", choices=get_args(Method), default=list(get_args(Method)))
    parser.add_argument("--checkpointing", action="store_true", help="compute the layers again in the backward")
    parser.add_argument(
        "--write", action="store_true", help="write the tables of docs/memory.md again, measure nothing"
    )
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measured(**json.loads(options.one))))
    elif options.write:
        PAGE.write_text(rewritten_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        rows = compare(options)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
