"""What each of two processes does with pilot responses; a test starts it and reads what it wrote.

python -m torch.distributed.run --nproc_per_node 2 two_ranks_pilots.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from lightning.fabric import Fabric
from training_parts import TINY, tiny_loop, tiny_policy, trainable
from two_ranks_dynamic_sampling import PROMPTS, Lists

from ippo_lightning.algorithms import FixedKLController, GroupBaseline
from ippo_lightning.engine import PilotCommit, UpdateSettings
from ippo_lightning.modules import OptimizerSettings, PPOModule
from ippo_lightning.policies import SamplingSettings
from ippo_lightning.records import RolloutPlan, TextEpisodes
from ippo_lightning.run.fsdp_strategy import ShardedStrategy
from ippo_lightning.tasks import grade_arithmetic

VARIED = (PROMPTS[2], PROMPTS[5], PROMPTS[8], PROMPTS[11])
"""Prompts whose rewards vary most: two of each rank."""


class PromptModule(PPOModule):
    """Samples the same responses to a prompt in every process, whatever else is sampled."""

    def rollout(self, plan: RolloutPlan) -> TextEpisodes:
        parts, dtype = [], torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # a rollout stores float32, also under a precision of 64 bits
        for number in plan.counts.nonzero().flatten().tolist():
            torch.manual_seed(crc32(plan.batch["prompts"][number].encode()))
            one = {name: [column[number]] for name, column in plan.batch.items()}
            alone = super().rollout(RolloutPlan(batch=one, counts=plan.counts[number : number + 1]))
            parts.append(alone.evolve(group=alone.group + number))
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        return TextEpisodes.concat(parts)


def by_prompt(prompts: Any, responses: Any, examples: Any) -> list[float]:
    """Rewards that vary for each prompt, and most for those of `VARIED`; every call has an even number of each."""
    return [float(row % 2) * (1.0 if prompt in VARIED else 0.1) for row, prompt in enumerate(prompts)]


def module_of(*, num_prompts: int, kind: type[PPOModule] = PromptModule) -> PPOModule:
    """A tiny GRPO whose update is one minibatch over everything."""
    return kind(
        policy=tiny_policy(value="none", config={**TINY, "num_hidden_layers": 2}),
        reward=by_prompt,
        grader=grade_arithmetic,
        sampling=SamplingSettings(num_responses=4, max_new_tokens=8, stop_tokens=["1", "2", "3"]),
        advantages=GroupBaseline(),
        kl_controller=FixedKLController(coef=0.0),
        optimizer=OptimizerSettings(learning_rate=1e-3),
        update=UpdateSettings(num_epochs=2, minibatch_size=64, micro_batch_size=4),
        pilot_commit=PilotCommit(num_prompts=num_prompts),
    )


def trained(
    folder: Path, module: PPOModule, fabric: Fabric, prompts: tuple[str, ...], **changes: Any
) -> dict[str, Any]:
    """Run and return what the newest iteration did on this rank."""
    tiny_loop(folder, module, fabric=fabric, data=Lists(prompts), **{"max_iterations": 1, **changes}).fit()
    stats = module.last_stats
    assert stats is not None
    return {
        **{name: value for name, value in stats.metrics.items() if name.startswith("pilot_commit/")},
        "prompts": stats.episodes.prompts[::4],
        "sampled": len(stats.sampled),
        "episodes_seen": module.episodes_seen,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    exact = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
    exact.launch()
    mine = exact.global_rank
    numbers: dict[str, Any] = {}
    module = module_of(num_prompts=2)
    module.double()
    numbers["halves"] = trained(folder / "halves", module, exact, PROMPTS[mine::2])
    torch.save(trainable(module), folder / f"halves.rank{mine}.pt")
    # rank 1 has fewer prompts than are chosen; the rollouts are collectives
    sharded = Fabric(accelerator="cpu", devices=2, strategy=ShardedStrategy())
    sharded.launch()
    module = module_of(num_prompts=3, kind=PPOModule)
    few = PROMPTS[mine::2][: 8 if mine == 0 else 2]
    numbers["uneven"] = trained(folder / "uneven", module, sharded, few, max_iterations=2)
    (folder / f"rank{mine}.json").write_text(json.dumps(numbers), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
