"""Peak memory of one pass over 1,024 response tokens as the vocabulary grows: on a GPU, logits are most of it.

    python benchmarks/vocabulary.py                       # about five minutes on one core
    python benchmarks/vocabulary.py --vocabularies 4096 131072 --stages scoring

Each number is the growth of the resident set over what model, gradient and target gradient take, in a process of its
own, in MiB. `whole` shows the same pass with the logits of all tokens at once.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ippo_lightning.influence import influence_scores
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, head_blocks

ROWS, PROMPT, STEPS = 16, 16, 64
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
MIB = 2**20


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[1024, 4096, 32768, 131072])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--trained", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--whole", action="store_true", help="also with the logits of all tokens at once")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(**json.loads(options.one))))
        return
    rows = [
        {"trained": trained, "stage": stage, "whole": whole, "vocabulary": size}
        for trained in options.trained
        for stage in options.stages
        for whole in ([False, True] if options.whole else [False])
        for size in options.vocabularies
    ]
    table = Table("trained", "stage", "logits", "vocabulary", "MiB", "seconds")
    results = []
    for row in rows:
        found = in_own_process(**row)
        results.append({**row, **found})
        logits = "whole" if row["whole"] else "in blocks"
        table.add_row(
            row["trained"],
            row["stage"],
            logits,
            str(row["vocabulary"]),
            f"{found['mib']:.0f}",
            f"{found['seconds']:.2f}",
        )
    Console(width=110).print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def in_own_process(**case: Any) -> dict[str, float]:
    """Return what one pass takes in a fresh process.

    Args:
        case: arguments of `measured`.
    """
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def policy_of(vocabulary: int, *, lora: bool) -> CausalLMPolicy:
    """Return a small Llama with a vocabulary of any size."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={"<pad>": 0, "</s>": 1, "a": 2}, merges=[])),
        pad_token="<pad>",
        eos_token="</s>",
    )
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": vocabulary,
    }
    adapter = LoraSettings(r=4) if lora else None
    return CausalLMPolicy(config=config, tokenizer=tokenizer, lora=adapter, reference="none")


def episodes(rows: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return prompts and responses of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, vocabulary, (rows, PROMPT + STEPS), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    return ids[:, :PROMPT], mask[:, :PROMPT], ids[:, PROMPT:], mask[:, PROMPT:]


def losses(policy: CausalLMPolicy, rows: tuple[Tensor, ...]) -> Tensor:
    """Return one loss per row, like PPO's: log-probs, entropy and values."""
    output = policy(*rows, with_values=True, with_entropy=True)
    assert output.entropy is not None
    assert output.values is not None
    return (output.log_probs + 0.1 * output.entropy + output.values).mean(dim=1)


def log_probs(policy: CausalLMPolicy, rows: tuple[Tensor, ...], _direction: dict[str, Tensor]) -> None:
    """Score responses without gradients, as policy and reference do after sampling."""
    with torch.no_grad():
        losses(policy, rows)


def update(policy: CausalLMPolicy, rows: tuple[Tensor, ...], _direction: dict[str, Tensor]) -> None:
    """Go forward and backward."""
    losses(policy, rows).sum().backward()


def scoring(policy: CausalLMPolicy, rows: tuple[Tensor, ...], direction: dict[str, Tensor]) -> None:
    """Score all rows; the exactness check is made on a first batch of two."""
    influence_scores(policy, losses, [tuple(part[:2] for part in rows), rows], direction)


STAGES: dict[str, Callable[[CausalLMPolicy, tuple[Tensor, ...], dict[str, Tensor]], None]] = {
    "log_probs": log_probs,
    "update": update,
    "scoring": scoring,
}


def measured(*, vocabulary: int, stage: str, trained: str, whole: bool) -> dict[str, float]:
    """Return the growth of the resident set in MiB, and the seconds of one pass.

    Args:
        vocabulary: of the model.
        stage: one of `STAGES`.
        trained: "lora" or "full".
        whole: whether the logits of all tokens are made at once.
    """
    torch.set_num_threads(1)
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)  # blocks go back when they are freed, so what is resident is what is in use
    policy = policy_of(vocabulary, lora=trained == "lora")
    rows = episodes(ROWS, vocabulary)
    # Gradients exist before the pass, as they do from the second micro-batch of a step onwards.
    direction = {name: torch.randn_like(parameter) for name, parameter in policy.named_trainable_parameters()}
    for _, parameter in policy.named_trainable_parameters():
        parameter.grad = torch.zeros_like(parameter)
    run = STAGES[stage]
    run(policy, tuple(part[:2] for part in rows), direction)  # thread pools, code and allocator arenas come first
    if whole:
        head_blocks.BLOCK_ENTRIES = 2**62
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to the present
    before, start = resident("VmRSS"), time.perf_counter()
    run(policy, rows, direction)
    return {"mib": (resident("VmHWM") - before) / MIB, "seconds": time.perf_counter() - start}


def resident(field: str) -> float:
    """Return a field of the process's status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024.0 * float(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
