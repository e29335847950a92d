r"""What three stopping rules save and lose on arithmetic, and whether the predicted gain is the measured one.

    python benchmarks/stopping.py --seeds 10                       # runs what is missing, then prints the tables
    python benchmarks/stopping.py --seeds 10 --case own_responses  # demonstrations that the policy itself has written
    python benchmarks/stopping.py --table                          # only the tables, of the runs that ended
    python benchmarks/stopping.py --figure stopping.png            # also the figure

A stopping rule only cuts a run, so one run per seed serves all rules: each predicts in every iteration, and none
stops. Each seed has its own 64 demonstrations; 256 others, the same for all seeds, are held out to measure their loss.
The learning rate is constant. Seconds are those of the processor, on one thread. A run that has ended becomes lines of
benchmarks/curves/stopping.csv and is not run again; a run that was interrupted resumes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.fabric import Fabric
from stopping_tables import CURVES, Curve, draw, read_curves, tables, write_curves

from ippo_lightning import FabricLoop, PPOModule
from ippo_lightning.algorithms import FixedKLController
from ippo_lightning.callbacks import GainStopping, InfluenceFilter, ScoringSettings
from ippo_lightning.data import TextDataModule
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.run.fabric_loop import LoopSettings
from ippo_lightning.storage.run_folder import EVALUATIONS, RunFolder
from ippo_lightning.tasks import ArithmeticTask

MODEL = Path(__file__).parents[1] / "experiments" / "models" / "arithmetic_llama"
NUM_DEMONSTRATIONS, NUM_HELD_OUT, MOST_SEEDS = 64, 256, 10
CASES = ("arithmetic", "own_responses", "random_responses")
NEVER = 10**6


class Demonstrations(TextDataModule):
    """Arithmetic with other demonstrations for each seed, and some that no seed uses.

    Args:
        case: whether the demonstrations are the task's, the policy's own responses, or random characters.
        seed: of the run, from 1.
        batch_size: prompts of a rollout.
        num_validation: validation problems.
    """

    def __init__(self, case: str, *, seed: int, batch_size: int, num_validation: int) -> None:
        count = MOST_SEEDS * NUM_DEMONSTRATIONS + NUM_HELD_OUT
        task = ArithmeticTask(
            max_terms=3, num_train=24000, num_validation=num_validation, num_influence_demonstrations=count
        )
        super().__init__(task, batch_size=batch_size)
        self.case, self.number = case, seed
        self.held_out: list[dict[str, Any]] = []

    def setup(self, stage: str | None = None) -> None:
        """Divide the demonstrations."""
        if self._splits is not None:
            return
        super().setup(stage)
        rows = [dict(row) for row in self.splits.influence]
        first = NUM_HELD_OUT + (self.number - 1) * NUM_DEMONSTRATIONS
        self.held_out, mine = rows[:NUM_HELD_OUT], rows[first : first + NUM_DEMONSTRATIONS]
        if self.case == "random_responses":
            characters = sorted({character for row in rows for character in row["response"]})
            drawn = torch.Generator().manual_seed(self.number)
            for row in [*self.held_out, *mine]:
                places = torch.randint(len(characters), (len(row["response"]),), generator=drawn)
                row["response"] = "".join(characters[place] for place in places)
        self.splits.influence[:] = mine  # type: ignore[index]


class OwnResponses(Callback):
    """Lets the policy write the demonstrations before its first update: the expected gradient of their loss is zero."""

    def __init__(self) -> None:
        self.responses: list[str] = []

    def on_rollout_start(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        """Write them once."""
        rows = [*trainer.datamodule.held_out, *trainer.datamodule.splits.influence]
        if not self.responses:
            own = pl_module.plan_rollout({name: [row[name[:-1]] for row in rows] for name in ("prompts", "examples")})
            own.allocate(torch.ones_like(own.counts), reason="one each")
            self.responses = list(pl_module.rollout(own).responses)
        for row, response in zip(rows, self.responses, strict=True):
            row["response"] = response

    def state_dict(self) -> dict[str, Any]:
        """Return the responses."""
        return {"responses": self.responses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.responses = state["responses"]


class Measure(Callback):
    """Measures the loss of the demonstrations before each update, and the seconds of an iteration."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._losses = (0.0, 0.0)
        self._start = time.process_time()

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        """Measure the losses, off the clock."""
        begin = time.process_time()
        data = trainer.datamodule
        self._losses = (_loss(pl_module, data.splits.influence), _loss(pl_module, data.held_out))
        self._start += time.process_time() - begin

    def on_update_end(self, trainer: Any, pl_module: Any, stats: Any) -> None:
        """Keep what the tables need of this iteration."""
        names = ("predicted_gain", "predicted_gain_low", "predicted_gain_high")
        self.rows.append(
            {
                "loss": self._losses[0],
                "held_out": self._losses[1],
                **{name: stats.metrics[f"influence/{name}"] for name in names},
                "kept": stats.kept_fraction,
                "tokens": float(stats.tokens_trained),
                "seconds": time.process_time() - self._start,
            }
        )
        self._start = time.process_time()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave evaluations off the clock."""
        self._start = time.process_time()

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.rows = state["rows"]


@torch.no_grad()
def _loss(module: Any, rows: Any) -> float:
    return float(module.validation_loss({name: [row[name[:-1]] for row in rows] for name in ("prompts", "responses")}))


def run(case: str, seed: int, options: argparse.Namespace) -> Curve:
    """Begin or continue one run; return its curve.

    Args:
        case: one of `CASES`.
        seed: from 1.
        options: of the command line.
    """
    folder, measure = options.root / case / f"seed{seed}", Measure()
    module = PPOModule(
        policy=CausalLMPolicy(pretrained=str(MODEL)),
        kl_controller=FixedKLController(coef=0.02),
        sampling=SamplingSettings(num_responses=4, max_new_tokens=48),
        update=UpdateSettings(num_epochs=2),
        optimizer=OptimizerSettings(learning_rate=8e-5, value_learning_rate=1e-3, epsilon=1e-5),
    )
    data = Demonstrations(case, seed=seed, batch_size=options.prompts, num_validation=options.validation)
    scoring = ScoringSettings(adam_aware=True, max_tokens=2048, health_every_n_iterations=0)
    own = [OwnResponses()] if case == "own_responses" else []
    influence = InfluenceFilter(power=0.5, max_weight=2.0, scoring=scoring)
    settings = LoopSettings(
        run_dir=str(folder),
        max_iterations=options.iterations,
        evaluate_every_n_iterations=options.evaluate if case == "arithmetic" else 0,
        evaluate_first=case == "arithmetic",
        test_at_end=False,
        save_model=False,
        progress_bar=False,
        checkpoint_every_n_iterations=10,
        resume=True,
    )
    # The last one reads what the others have logged.
    callbacks = [*own, influence, GainStopping(min_iterations=NEVER), measure]
    fabric = Fabric(accelerator="cpu", devices=1)
    FabricLoop(fabric, module, data, callbacks=callbacks, settings=settings, seed=seed).fit()
    evaluations = {int(row["iteration"]): row for row in RunFolder(folder).read_rows(EVALUATIONS)}
    for number, row in enumerate(measure.rows, start=1):
        found: Mapping[str, Any] = evaluations.get(number, {})
        row["exact_match"] = float(found.get("exact_match", math.nan))
        row["unfaithful"] = float(found.get("unfaithful_fraction", math.nan))
    return measure.rows


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="arithmetic")
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--evaluate", type=int, default=5, help="every n-th iteration")
    parser.add_argument("--prompts", type=int, default=32, help="of a rollout, with 4 responses each")
    parser.add_argument("--validation", type=int, default=128, help="problems, with 4 responses each")
    parser.add_argument("--root", type=Path, default=Path("runs/stopping"))
    parser.add_argument("--curves", type=Path, default=CURVES, help="the file of curves")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--figure", type=Path, help="write the figure into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = read_curves(options.curves)
    for seed in () if options.table else range(1, options.seeds + 1):
        if (options.case, seed) not in curves:
            curves[options.case, seed] = run(options.case, seed, options)
            write_curves(options.curves, curves)
    for line in tables(curves):
        print(line)
    if options.figure is not None:
        draw(curves, options.figure)


if __name__ == "__main__":
    main()
