"""Time and peak memory of every way to score, as multiples of one plain forward and backward over the same episodes.

    python benchmarks/scoring.py                # about 15 minutes on 2 cores
    python benchmarks/scoring.py --quick        # the middle length, the two smaller buffers

The yardstick is `losses.sum().backward()` over the same micro-batches, with gradients adding up in `.grad`, which is an
epoch of PPO without its optimizer. Ways take turns within each round, and a ratio is of one round: noise that lasts
longer than a round cancels. The time of hooks and of the forward method contains that of their check, divided by the
iterations between two checks. Peak memory is the growth of the resident set, each way in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from scoring_case import Case, build_case, error_and_signs
from torch import Tensor

from ippo_lightning.influence import influence_scores

YARDSTICK = "forward + backward"
CHECK = "check of two scores"
CHECKED = 2
CHECK_COST = 0.03
"""As in `selection/scorer.py`."""
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def main() -> None:
    """Measure, print, write."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(peak_growth(options)))
        return
    console, results = Console(width=110), []
    for adapter in options.adapters:
        for tokens in options.lengths:
            for episodes in options.buffers:
                row = measure(options, adapter=adapter == "lora", tokens=tokens, episodes=episodes)
                results.append({"trained": adapter, "tokens": tokens, "episodes": episodes, **row})
                console.print(table_of(results[-1]))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 96, 256], help="tokens of an episode")
    parser.add_argument("--buffers", type=int, nargs="+", default=[64, 256, 1024], help="episodes")
    parser.add_argument("--adapters", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens_per_batch", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the middle length and the two smaller buffers")
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.buffers = options.lengths[1:2], options.buffers[:2]
    return options


class Way(NamedTuple):
    """One way to get something from all episodes of a case."""

    run: Callable[[Case], Tensor | None]
    """Returns scores, or None for the yardstick."""
    max_episodes: int = 1 << 30
    """Above it the way is left out: it would only take long, and its ratio is known by then."""


def plain(case: Case) -> None:
    """Go forward and backward, and leave the gradients where an optimizer would find them."""
    for batch in case.batches:
        case.losses(case.model, batch).sum().backward()


def check(case: Case) -> None:
    """Compare two scores with plain autograd, as the callback does in its first and in every n-th iteration."""
    influence_scores(case.model, case.losses, case.first(CHECKED).batches, case.direction, checksum_batches=1)


def by(method: str, *, known: bool = False) -> Callable[[Case], Tensor]:
    """Return scoring by one of the library's methods, without the check."""

    def run(case: Case) -> Tensor:
        return influence_scores(
            case.model,
            case.losses,
            case.batches,
            case.direction,
            method=method,  # type: ignore[arg-type]
            known_losses=(lambda batch: batch.known) if known else None,
            checksum_batches=0,
        )

    return run


def vmap_gradients(case: Case) -> Tensor:
    """Form every episode's gradient by torch.func, then take inner products."""
    names = list(case.direction)
    parameters = {name: p.detach() for name, p in case.model.named_parameters()}
    trained = {name: parameters[name] for name in names}

    def loss(values: Mapping[str, Tensor], row: Any) -> Tensor:
        merged = {**parameters, **values}
        whole = case.stacked(row)
        found: Tensor = torch.func.functional_call(
            case.by_losses, {f"model.{name}": value for name, value in merged.items()}, (whole,)
        )
        return found.squeeze(0)

    scores = []
    for batch in case.batches:
        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(trained, tuple(batch))
        parts = [(gradients[name] * case.direction[name]).flatten(start_dim=1).sum(dim=1) for name in names]
        scores.append(torch.stack(parts).sum(dim=0))
    return torch.cat(scores)


WAYS: dict[str, Way] = {
    "hooks": Way(by("hooks")),
    "forward": Way(by("forward")),
    "finite difference, 2 forwards": Way(by("finite_difference")),
    "finite difference, known losses": Way(by("finite_difference", known=True)),
    "one backward per episode": Way(by("per_episode"), max_episodes=64),
    "vmap(grad)": Way(vmap_gradients, max_episodes=64),
}


CHECKED_WAYS = ("hooks", "forward")


def measure(options: argparse.Namespace, *, adapter: bool, tokens: int, episodes: int) -> dict[str, Any]:
    """Return time and memory ratios, error and signs by way."""
    case = case_of(options, adapter=adapter, tokens=tokens, episodes=episodes)
    ways = {name: WAYS[name] for name in options.ways if episodes <= WAYS[name].max_episodes}
    found = {name: agreement(case, name, way) for name, way in ways.items()}
    seconds = [one_round(case, ways) for _ in range(options.rounds)]
    yardstick = statistics.median(row[YARDSTICK] for row in seconds)
    every = math.ceil(3 * CHECKED / (CHECK_COST * episodes))
    for row in seconds:
        for name in CHECKED_WAYS:
            if name in row:
                row[name] += row[CHECK] / every
    for name, entry in found.items():
        entry["time"] = statistics.median(row[name] / row[YARDSTICK] for row in seconds)
    if not options.no_memory:
        names = [YARDSTICK, *ways]
        growth = {
            name: in_own_process(options, name, adapter=adapter, tokens=tokens, episodes=episodes) for name in names
        }
        for name, entry in found.items():
            entry["memory"] = growth[name] / growth[YARDSTICK]
    return {"seconds": yardstick, "ways": found}


def agreement(case: Case, name: str, way: Way) -> dict[str, Any]:
    """Return the error and the fraction of right signs of one way.

    Hooks and the slow ways are held against one backward per episode, over 64; the others against hooks, over 512.
    """
    by_autograd = name == "hooks" or way.max_episodes <= 64
    sample = case.first(64 if by_autograd else 512)
    scores, exact = way.run(sample), by("per_episode" if by_autograd else "hooks")(sample)
    assert scores is not None, "every way but the yardstick returns scores"
    error, signs = error_and_signs(scores, exact)
    return {"error": error, "signs": signs}


def case_of(options: argparse.Namespace, *, adapter: bool, tokens: int, episodes: int) -> Case:
    """Build the case that the options describe."""
    return build_case(
        adapter=adapter,
        tokens=tokens,
        episodes=episodes,
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        tokens_per_batch=options.tokens_per_batch,
    )


def one_round(case: Case, ways: Mapping[str, Way]) -> dict[str, float]:
    """Let every way run once, in turn; return seconds."""
    seconds: dict[str, float] = {}
    for name, run in {YARDSTICK: plain, CHECK: check, **{name: way.run for name, way in ways.items()}}.items():
        case.model.zero_grad(set_to_none=True)
        gc.collect()
        start = time.perf_counter()
        run(case)
        seconds[name] = time.perf_counter() - start
    return seconds


def in_own_process(options: argparse.Namespace, way: str, **case: Any) -> float:
    """Return the growth of the resident set, in bytes, of one way in a fresh process."""
    command = [sys.executable, __file__, "--memory_of", json.dumps({"way": way, **case})]
    for name in ("hidden_size", "layers", "tokens_per_batch", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak_growth(options: argparse.Namespace) -> float:
    """Run one way once and return how far the resident set grew over what the case itself takes, in bytes."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)  # blocks go back when they are freed, so what is resident is what is held
    wanted = json.loads(options.memory_of)
    way = wanted.pop("way")
    case = case_of(options, **wanted)
    run = plain if way == YARDSTICK else WAYS[way].run
    # one batch first: thread pools, code and allocator arenas are nobody's doing
    plain(case.first(2))
    case.model.zero_grad(set_to_none=True)
    gc.collect()
    libc.malloc_trim(0)  # what was freed while building the case would hide growth
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to the present
    before = _status("VmRSS")
    run(case)
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024.0 * float(next(line for line in lines if line.startswith(field)).split()[1])


def table_of(row: Mapping[str, Any]) -> Table:
    """Return one case as a table."""
    title = (
        f"{row['trained']}, {row['episodes']} episodes of {row['tokens']} tokens; "
        f"1 = one forward + backward = {row['seconds']:.2f} s"
    )
    table = Table(title=title, title_justify="left")
    for column in ("way", "time", "peak memory", "signs right", "largest error"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, entry in row["ways"].items():
        memory = f"{entry['memory']:.2f}" if "memory" in entry else "-"
        table.add_row(name, f"{entry['time']:.2f}", memory, f"{entry['signs']:.3f}", f"{entry['error']:.0e}")
    return table


if __name__ == "__main__":
    main()
