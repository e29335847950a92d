"""What each of two processes does; the tests start it with torchrun and read what it wrote.

python -m torch.distributed.run --nproc_per_node 2 two_ranks.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.fabric import Fabric

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from training_parts import tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.engine.update import run_update
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import Episodes, UpdatePlan

NUM_PROMPTS = 4
"""Of the whole buffer in the scenarios that compare two halves with the whole; two responses to each."""
KEPT_WEIGHTS = (0.5, 0.0, 2.0, 0.0, 0.0, 1.5, 0.25, 0.75)
"""Of those eight episodes."""


class KeepByRank(Callback):
    """Keeps the first `counts[rank]` episodes of each rank."""

    def __init__(self, counts: tuple[int, int]) -> None:
        self.counts = counts

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: UpdatePlan) -> None:
        rows = torch.arange(len(plan.episodes))
        plan.reweight((rows < self.counts[trainer.fabric.global_rank]).float(), reason="by rank")


def exact_module(**ppo: Any) -> PPOModule:
    """A module in fp64 whose update is one minibatch over everything, in micro-batches of two."""
    module = tiny_module(ppo={"minibatch_size": 64, "micro_batch_size": 2, "num_epochs": 2, **ppo})
    module.double()
    return module


def whole_buffer(module: PPOModule) -> Episodes:
    """Eight episodes with rewards but no advantages, the same in every process."""
    data = tiny_data(batch_size=NUM_PROMPTS)
    data.setup()
    rows = data.train_dataloader().dataset.rows[:NUM_PROMPTS]
    batch = {"prompts": [row["prompt"] for row in rows], "examples": [row["example"] for row in rows]}
    torch.manual_seed(11)
    return module.compute_rewards(module.rollout(batch))


def update_rows(module: PPOModule, buffer: Episodes, rows: list[int]) -> dict[str, torch.Tensor]:
    """Whiten, weight and update on the given rows of the buffer; return advantages and parameters."""
    episodes = module.compute_advantages(buffer.select(rows))
    plan = UpdatePlan(episodes=episodes)
    plan.reweight(torch.tensor(KEPT_WEIGHTS)[rows], reason="given")
    plan.sealed = True
    run_update(module, plan, module.ppo)
    total = episodes.advantages.sum(dim=1)
    return {"advantage_sums": total, **trainable(module)}


def filter_rows(loop: Any, module: PPOModule, buffer: Episodes, rows: list[int]) -> torch.Tensor:
    """Return the weights that the influence filter gives to the given rows of the buffer."""
    plan = UpdatePlan(episodes=module.compute_advantages(buffer.select(rows)))
    InfluenceFilter(max_weight=1.5).on_rollout_end(loop, module, plan)
    return plan.weights


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    rank = fabric.global_rank
    numbers: dict[str, Any] = {}

    # a whole run, twice, with the filter, an evaluation and a checkpoint
    ids = []
    for name in ("run", "again"):
        module = tiny_module()
        loop = tiny_loop(
            folder / name,
            module,
            fabric=fabric,
            callbacks=[InfluenceFilter()],
            evaluate_every_n_iterations=1,
            test_at_end=True,
            save_model=True,
        )
        numbers[name] = loop.fit()
        assert module.last_stats is not None
        ids.append(module.last_stats.episodes.response_ids.tolist())
        torch.save(trainable(module), folder / f"{name}.rank{rank}.pt")
    numbers["response_ids"] = ids

    # ranks that keep different numbers, or nothing
    for counts in ((3, 0), (0, 0), (1, 16)):
        module = tiny_module(ppo={"num_epochs": 2, "minibatch_size": 4, "micro_batch_size": 2})
        before = trainable(module)
        name = f"kept_{counts[0]}_{counts[1]}"
        tiny_loop(folder / name, module, fabric=fabric, callbacks=[KeepByRank(counts)], max_iterations=1).fit()
        assert module.last_stats is not None
        numbers[name] = {
            "optimizer_steps": module.last_stats.optimizer_steps,
            "kept_share": module.last_stats.kept_share,
            "changed": not all(torch.equal(before[key], value) for key, value in trainable(module).items()),
        }
        torch.save(trainable(module), folder / f"{name}.rank{rank}.pt")

    # a mistake that only the writing rank can see
    try:
        tiny_loop(folder / "run", tiny_module(), fabric=fabric).fit()
    except UserError as error:
        numbers["mistake"] = str(error)

    # halves of one buffer
    for reduction in ("episode_mean", "token_mean"):
        for denominator in ("all", "kept"):
            module = exact_module(loss_reduction=reduction, denominator=denominator)
            buffer = whole_buffer(module)
            exact = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
            exact.launch()
            loop = tiny_loop(folder / "unused", module, fabric=exact, overwrite=True)
            loop.set_up()
            rows = list(range(rank, len(buffer), 2))
            results = {"weights": filter_rows(loop, module, buffer, rows), **update_rows(module, buffer, rows)}
            torch.save(results, folder / f"halves.{reduction}.{denominator}.rank{rank}.pt")
    (folder / f"rank{rank}.json").write_text(json.dumps(numbers), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
