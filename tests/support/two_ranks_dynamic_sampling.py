"""What each of two processes does with dynamic sampling; a test starts it and reads what it wrote.

python -m torch.distributed.run --nproc_per_node 2 two_ranks_dynamic_sampling.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from critic_free import SAMPLING
from lightning import LightningDataModule
from lightning.fabric import Fabric
from training_parts import TINY, tiny_loop, tiny_policy, trainable

from ippo_lightning.algorithms import FixedKLController, GroupBaseline
from ippo_lightning.distributed.collectives import rank
from ippo_lightning.engine import DynamicSampling, UpdateSettings
from ippo_lightning.modules import OptimizerSettings, PPOModule
from ippo_lightning.records import RolloutPlan, TextEpisodes
from ippo_lightning.run.fsdp_strategy import ShardedStrategy
from ippo_lightning.tasks import grade_arithmetic

PROMPTS = tuple(f"{first}+{second}?" for first in range(4) for second in range(4))
"""Of one batch of one rank; two ranks take every second one."""
EQUAL = frozenset({"0+0?", "0+2?", "1+0?", "1+1?"})
"""Prompts with equal rewards: of the first four, both of rank 0; of the next two, one of each rank."""


class PromptModule(PPOModule):
    """Samples the same responses to a prompt in every process, whatever else is sampled."""

    def rollout(self, plan: RolloutPlan) -> TextEpisodes:
        parts, dtype = [], torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # a rollout stores float32, also under a precision of 64 bits
        for number, prompt in enumerate(plan.batch["prompts"]):
            torch.manual_seed(crc32(prompt.encode()))
            one = {"prompts": [prompt], "examples": [plan.batch["examples"][number]]}
            alone = super().rollout(RolloutPlan(batch=one, counts=plan.counts[number : number + 1]))
            parts.append(alone.evolve(group=alone.group + number))
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        return TextEpisodes.concat(parts)


class Lists(LightningDataModule):
    """One batch, from a list of prompts."""

    def __init__(self, prompts: tuple[str, ...]) -> None:
        super().__init__()
        self.prompts = prompts

    def train_dataloader(self) -> Any:
        return [{"prompts": list(self.prompts), "examples": [{} for _ in self.prompts]}]


def by_prompt(prompts: Any, responses: Any, examples: Any) -> list[float]:
    """One for the prompts of `EQUAL`, and another number for each response to the others."""
    return [1.0 if prompt in EQUAL else float(row % 2) for row, prompt in enumerate(prompts)]


def by_rank(prompts: Any, responses: Any, examples: Any) -> list[float]:
    """Different rewards on rank 0 alone."""
    return [float(row % 2) * (rank() == 0) for row in range(len(prompts))]


def one_prompt_equal(prompts: Any, responses: Any, examples: Any) -> list[float]:
    """Equal rewards for one prompt of rank 0 alone."""
    return [1.0 if prompt == PROMPTS[0] else float(row % 2) for row, prompt in enumerate(prompts)]


def all_equal(prompts: Any, responses: Any, examples: Any) -> list[float]:
    return [1.0] * len(prompts)


REWARDS = {"by_rank": by_rank, "all_equal": all_equal, "odd": one_prompt_equal}


def module_of(reward: Any, *, num_prompts: int, max_rounds: int = 2, kind: type[PPOModule] = PromptModule) -> PPOModule:
    """A tiny GRPO whose update is one minibatch over everything."""
    return kind(
        policy=tiny_policy(value="none", config={**TINY, "num_hidden_layers": 2}),
        reward=reward,
        grader=grade_arithmetic,
        sampling=SAMPLING,
        advantages=GroupBaseline(),
        kl_controller=FixedKLController(coef=0.0),
        optimizer=OptimizerSettings(learning_rate=1e-3),
        update=UpdateSettings(num_epochs=2, minibatch_size=64, micro_batch_size=4),
        dynamic_sampling=DynamicSampling(num_prompts=num_prompts, max_rounds=max_rounds),
    )


def trained(
    folder: Path, module: PPOModule, fabric: Fabric, prompts: tuple[str, ...], **changes: Any
) -> dict[str, Any]:
    """Run and return what the newest iteration did on this rank."""
    before = trainable(module)
    tiny_loop(folder, module, fabric=fabric, data=Lists(prompts), **{"max_iterations": 1, **changes}).fit()
    stats = module.last_stats
    assert stats is not None
    return {
        **{name: value for name, value in stats.metrics.items() if name.startswith("dynamic_sampling/")},
        "prompts": stats.episodes.prompts[::2],
        "sampled": stats.sampled.prompts[::2],
        "kept": int(stats.plan.keep.sum()),
        "reasons": [change.reason for change in stats.plan.history],
        "episodes_seen": module.episodes_seen,
        "optimizer_steps": stats.optimizer_steps,
        "changed": not all(torch.equal(before[name], value) for name, value in trainable(module).items()),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    exact = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
    exact.launch()
    mine = exact.global_rank
    numbers: dict[str, Any] = {}
    module = module_of(by_prompt, num_prompts=2)
    module.double()
    numbers["halves"] = trained(folder / "halves", module, exact, PROMPTS[mine::2])
    torch.save(trainable(module), folder / f"halves.rank{mine}.pt")
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    for name, reward in REWARDS.items():
        # the own rollouts of each rank
        module = module_of(reward, num_prompts=2, kind=PPOModule)
        numbers[name] = trained(folder / name, module, fabric, PROMPTS[mine::2])
        torch.save(trainable(module), folder / f"{name}.rank{mine}.pt")
    # rank 1 has one prompt in reserve, rank 0 has six
    module = module_of(by_rank, num_prompts=2, max_rounds=5, kind=PPOModule)
    numbers["uneven"] = trained(folder / "uneven", module, fabric, PROMPTS[mine::2][: 8 if mine == 0 else 3])
    sharded = Fabric(accelerator="cpu", devices=2, strategy=ShardedStrategy())
    sharded.launch()
    module = module_of(by_rank, num_prompts=2, kind=PPOModule)
    numbers["sharded"] = trained(folder / "sharded", module, sharded, PROMPTS[mine::2], max_iterations=2)
    (folder / f"rank{mine}.json").write_text(json.dumps(numbers), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
