"""What each target costs, a row's own part, and scores of each minibatch: in epochs of PPO over the rollout.

    python benchmarks/own_part.py                              # about a minute on one core
    python benchmarks/own_part.py --prompts 16 --iterations 3  # as in RESULTS.md
    python benchmarks/own_part.py --prompts 64 --hidden 128

Each case runs the same iterations, from the same seed, and reads its seconds from the run's own log: gradient of the
target, and the scores with what a target leaves out. The unit is an epoch of the update without any filter. The first
iteration, which warms up, does not count. The reward is the fraction of digits in a response: a new model has no
right answer, and with equal rewards the gradient of a target made of them is zero, which costs less to score against.
No case changes the plan, so that all train on the same rows. Seconds are those of the processor, on one thread: those
of the clock would count whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from ippo_lightning import FabricLoop, PPOModule
from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.data import TextDataModule, arithmetic_tokenizer
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.run.fabric_loop import LoopSettings
from ippo_lightning.selection import AverageReward, LeaveOneOutMean, ReturnOfBuffer, SequenceReturn
from ippo_lightning.tasks import ArithmeticTask

EPOCHS = 2


def cases(num_prompts: int) -> dict[str, dict[str, Any]]:
    """Return the settings of the filter in each case; demonstrations and fresh responses as many as the rollout has."""
    return {
        "demonstrations": {},
        "return of the buffer": {"target": ReturnOfBuffer()},
        "return of the buffer, without its own part": {"target": ReturnOfBuffer(leave_out_self=True)},
        "average reward": {"target": AverageReward()},
        "average reward, without its own part": {"target": AverageReward(leave_out_self=True)},
        "mean of the other rows": {"target": LeaveOneOutMean()},
        "average reward, validation prompts": {"target": AverageReward(prompts="validation", num_prompts=num_prompts)},
        "return of sequences, validation prompts": {"target": SequenceReturn(num_prompts=num_prompts)},
        "minibatch: demonstrations": {"score_at": "minibatch"},
        "minibatch: average reward": {"score_at": "minibatch", "target": AverageReward()},
        "minibatch: mean of the other rows": {"score_at": "minibatch", "target": LeaveOneOutMean()},
    }


def fraction_of_digits(prompts: Sequence[str], responses: Sequence[str], examples: Sequence[Any]) -> list[float]:
    """Return a reward that differs between the responses of a new model.

    Args:
        prompts: not used.
        responses: to them.
        examples: not used.
    """
    return [sum(map(str.isdigit, response)) / max(1, len(response)) for response in responses]


def seconds(options: argparse.Namespace, settings: dict[str, Any] | None) -> dict[str, float]:
    """Return the medians of a run's seconds, by part.

    Args:
        options: of the command line.
        settings: of the filter; None for a run without one.
    """
    sizes = {"hidden_size": options.hidden, "intermediate_size": 3 * options.hidden, "num_attention_heads": 4}
    config = {"model_type": "llama", "num_hidden_layers": 3, "max_position_embeddings": 96, **sizes}
    module = PPOModule(
        policy=CausalLMPolicy(config=config, tokenizer=arithmetic_tokenizer(), seed=0),
        reward=fraction_of_digits,
        sampling=SamplingSettings(num_responses=4, max_new_tokens=32),
        update=UpdateSettings(num_epochs=EPOCHS, minibatch_size=32),
    )
    rows = {"num_train": 1024, "num_validation": options.prompts, "num_influence_demonstrations": 4 * options.prompts}
    data = TextDataModule(ArithmeticTask(**rows), batch_size=options.prompts)
    scoring = ScoringSettings(health_every_n_iterations=0)
    callbacks: list[Any] = [] if settings is None else [InfluenceFilter(monitor_only=True, scoring=scoring, **settings)]
    with tempfile.TemporaryDirectory() as folder:
        loop = LoopSettings(
            run_dir=folder,
            max_iterations=options.iterations,
            evaluate_every_n_iterations=0,
            evaluate_first=False,
            test_at_end=False,
            save_model=False,
            progress_bar=False,
            checkpoint_every_n_iterations=0,
            overwrite=True,
        )
        found: list[dict[str, float]] = []
        callbacks.append(_Log(found))
        FabricLoop(Fabric(accelerator="cpu", devices=1), module, data, callbacks=callbacks, settings=loop, seed=1).fit()
    names = ("time/update_seconds", "time/target_gradient_seconds", "time/scoring_seconds")
    return {name: statistics.median(numbers.get(name, 0.0) for numbers in found[1:]) for name in names}


class _Log:
    """Keeps the numbers of each iteration."""

    def __init__(self, found: list[dict[str, float]]) -> None:
        self.found = found

    def on_update_end(self, trainer: Any, pl_module: Any, stats: Any) -> None:
        """Keep them.

        Raises:
            RuntimeError: the gradient of the target is zero.
        """
        if stats.metrics.get("influence/gradient_norm", 1.0) == 0:
            raise RuntimeError("the gradient of the target is zero: what is measured is no scoring")
        self.found.append(dict(stats.metrics))


def main() -> None:
    """Run all cases, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16, help="prompts of a rollout, with 4 responses each")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--json", default=None, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # the run's own stages read it
    epoch = seconds(options, None)["time/update_seconds"] / EPOCHS
    numbers: dict[str, dict[str, float]] = {}
    table = Table("scores", "target gradient", "scores and own part", "together", title=f"1 epoch: {epoch:.2f} s")
    for name, settings in cases(options.prompts).items():
        taken = seconds(options, settings)
        target, scores = taken["time/target_gradient_seconds"] / epoch, taken["time/scoring_seconds"] / epoch
        numbers[name] = {"target": target, "scores": scores, "together": target + scores}
        table.add_row(name, *(f"{value:.2f}" for value in numbers[name].values()))
    Console(width=110).print(table)
    if options.json is not None:
        Path(options.json).write_text(
            json.dumps({"epoch_seconds": epoch, **numbers}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
