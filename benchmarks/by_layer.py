"""What an update costs whose layers learn from different rows: forwards and backwards, and seconds.

    python benchmarks/by_layer.py                 # a few minutes on one core

The unit is one plain forward and backward over the same episodes, as in `benchmarks/scoring.py`, with its models. Ways
take turns within each round, and a ratio is of one round. Seconds are those of the processor, on one thread. The scores
that the choice is made from cost as much as with `score_at: minibatch`; they are in `benchmarks/own_part.py`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from contextlib import nullcontext

import torch
from rich.console import Console
from rich.table import Table
from scoring_case import Case, build_case

from ippo_lightning.influence import RowShare, gradients_of_rows

FRACTIONS = {"none": None, "1": 1.0, "1/2": 0.5, "1/8": 0.125, "0": 0.0}
"""Of the rows that each layer learns from; None for a plain backward."""


def seconds_of(case: Case, fraction: float | None) -> float:
    """Go forward and backward over the episodes; return seconds of the processor."""
    case.model.zero_grad(set_to_none=True)
    gc.collect()
    trained = [name for name, parameter in case.model.named_parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(0)
    start = time.process_time()
    for batch in case.batches:
        rows = len(batch[0])
        # Each layer has rows of its own; the factor keeps rows that are all kept from the short way.
        shares = {
            name: RowShare(torch.rand(rows, generator=generator) < (fraction or 0.0), 1.5)
            for name in trained
            if fraction is not None
        }
        with gradients_of_rows(case.model, shares) if shares else nullcontext():
            case.losses(case.model, batch).sum().backward()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("trained", *(f"rows of a layer: {name}" for name in FRACTIONS))
    for adapter in (False, True):
        case = build_case(
            adapter=adapter,
            tokens=options.tokens,
            episodes=options.episodes,
            hidden_size=options.hidden_size,
            num_layers=options.layers,
            tokens_per_batch=3072,
        )
        rounds = [
            {name: seconds_of(case, fraction) for name, fraction in FRACTIONS.items()} for _ in range(options.rounds)
        ]
        ratios = [f"{statistics.median(row[name] / row['none'] for row in rounds):.2f}" for name in FRACTIONS]
        plain = statistics.median(row["none"] for row in rounds)
        table.add_row("lora" if adapter else "full", f"{plain:.2f} s", *ratios[1:])
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
