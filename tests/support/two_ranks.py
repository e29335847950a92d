"""What each of two processes does; the tests start it with torchrun and read what it wrote.

python -m torch.distributed.run --nproc_per_node 2 two_ranks.py FOLDER
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from communication import CommunicationCount
from critic_free import ALGORITHMS, critic_free_module
from lightning import Callback
from lightning.fabric import Fabric
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from training_parts import TINY, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.data.loaders import collate_rows
from ippo_lightning.engine.update import run_update
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings, PPOModule, SFTModule
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.records import TextEpisodes, UpdatePlan
from ippo_lightning.selection import ScoringSettings

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
        plan.scale((rows < self.counts[trainer.fabric.global_rank]).float(), reason="by rank")


def exact_module(**ppo: Any) -> PPOModule:
    """A module in fp64 whose update is one minibatch over everything, in micro-batches of two."""
    module = tiny_module(update={"minibatch_size": 64, "micro_batch_size": 2, "num_epochs": 2, **ppo})
    module.double()
    return module


def whole_buffer(module: PPOModule) -> TextEpisodes:
    """Eight episodes with rewards but no advantages, the same in every process."""
    data = tiny_data(batch_size=NUM_PROMPTS)
    data.setup()
    rows = data.train_dataloader().dataset.rows[:NUM_PROMPTS]
    batch = {"prompts": [row["prompt"] for row in rows], "examples": [row["example"] for row in rows]}
    torch.manual_seed(11)
    return module.compute_rewards(module.rollout(module.plan_rollout(batch)))


def update_rows(
    module: PPOModule, buffer: TextEpisodes, rows: list[int], *, keep_all: bool = False
) -> dict[str, torch.Tensor]:
    """Whiten, weight and update on the given rows of the buffer; return advantages and parameters."""
    return update_episodes(module, module.compute_advantages(buffer.select(rows)), rows, keep_all=keep_all)


def update_episodes(
    module: PPOModule, episodes: TextEpisodes, rows: list[int], *, keep_all: bool = False
) -> dict[str, torch.Tensor]:
    """Update on episodes that have their advantages, weighted, or all alike as in plain PPO."""
    plan = UpdatePlan(episodes=episodes)
    if not keep_all:
        plan.scale(torch.tensor(KEPT_WEIGHTS)[rows], reason="given")
    plan.sealed = True
    run_update(module, plan, module.update_settings)
    total = episodes.advantages.sum(dim=1)
    return {"advantage_sums": total, **trainable(module)}


def filter_rows(loop: Any, module: PPOModule, buffer: TextEpisodes, rows: list[int]) -> torch.Tensor:
    """Return the weights that the influence filter gives to the given rows of the buffer."""
    plan = UpdatePlan(episodes=module.compute_advantages(buffer.select(rows)))
    InfluenceFilter(max_weight=1.5).on_rollout_end(loop, module, plan)
    return plan.weights


def layer_rows(loop: Any, module: PPOModule, buffer: TextEpisodes, rows: list[int]) -> dict[str, torch.Tensor]:
    """Update on the given rows of the buffer, of which each layer chooses its own; return the parameters."""
    plan = UpdatePlan(episodes=module.compute_advantages(buffer.select(rows)))
    callback = InfluenceFilter(score_at="layer", power=0.0)
    callback.setup(loop, module, "fit")
    callback.on_rollout_end(loop, module, plan)
    plan.sealed = True
    hook = partial(callback.on_minibatch_start, loop, module)
    outcome = run_update(module, plan, module.update_settings, on_minibatch=hook)
    kept = [plan.metrics[f"influence/{name}"] for name in ("scored_kept_fraction", "layer_kept_min")]
    return {"kept": torch.tensor([*kept, outcome.kept_fraction]), **trainable(module)}


def layer_halves(folder: Path, fabric: Fabric) -> None:
    """Update on three rows against five: what a layer keeps is decided over all ranks."""
    for reduction in ("episode_mean", "token_mean"):
        module = exact_module(loss_reduction=reduction)
        buffer = whole_buffer(module)
        loop = tiny_loop(folder / "unused", module, fabric=fabric, overwrite=True)
        loop.set_up()
        rows = [0, 1, 2] if fabric.global_rank == 0 else [3, 4, 5, 6, 7]
        results = layer_rows(loop, module, buffer, rows)
        torch.save(results, folder / f"halves.layers.{reduction}.rank{fabric.global_rank}.pt")


def nf4_base(folder: Path) -> Path:
    """Save a model wide enough for blocks of four-bit weights, where it is not yet."""
    base = folder / "base"
    if (base / "config.json").exists():
        return base
    settings = {"config": {**TINY, "hidden_size": 64, "intermediate_size": 64}, "value": "none", "reference": "none"}
    tiny_policy(**settings).save_pretrained(base)
    return base


def policy_of(kind: str, folder: Path, **settings: Any) -> CausalLMPolicy:
    """A policy trained in full, or with an adapter on dense weights, or on four-bit ones; in fp64 but for the last."""
    if kind == "full":
        return tiny_policy(**settings).double()
    lora = LoraSettings(r=2)
    if kind == "lora":
        return tiny_policy(lora=lora, **settings).double()
    return CausalLMPolicy(
        pretrained=str(nf4_base(folder)), lora=lora, quantization="nf4", tokenizer=arithmetic_tokenizer(), **settings
    )


def exact_critic_free(name: str) -> PPOModule:
    """As `exact_module`, by an algorithm without a critic."""
    module = critic_free_module(name, update={"minibatch_size": 64, "micro_batch_size": 2, "num_epochs": 2})
    module.double()
    return module


def critic_free_run(folder: Path, fabric: Fabric) -> PPOModule:
    """Two iterations with a filter, by an algorithm that leaves out cut responses."""
    module = critic_free_module("dapo", update={"num_epochs": 2, "minibatch_size": 4})
    tiny_loop(folder, module, fabric=fabric, callbacks=[InfluenceFilter(min_keep=1)]).fit()
    return module


def adapter_module(kind: str, folder: Path) -> PPOModule:
    """As `exact_module`, with another kind of policy."""
    ppo = {"minibatch_size": 64, "micro_batch_size": 2, "num_epochs": 2}
    return tiny_module(policy=policy_of(kind, folder), update=ppo)


def sft_step(folder: Path, fabric: Fabric, rows: list[int], *, kind: str = "full") -> dict[str, torch.Tensor]:
    """Take one supervised step on the given demonstrations; return the parameters."""
    policy = policy_of(kind, folder.parent, value="none", reference="none")
    module = SFTModule(policy=policy, micro_batch_size=3, optimizer=OptimizerSettings(learning_rate=1e-3))
    data = tiny_data(stage="sft", num_demonstrations=16)
    loop = tiny_loop(folder, module, fabric=fabric, data=data, overwrite=True)
    loop.set_up()
    demonstrations = data.train_dataloader().dataset.rows[:10]
    module.training_step(collate_rows([demonstrations[row] for row in rows]), 0)
    return trainable(module)


def count_communication(loop: Any, module: PPOModule, episodes: TextEpisodes, rows: list[int]) -> dict[str, Any]:
    """Filter and update; return the bytes of each, and what they are compared with."""
    plan = UpdatePlan(episodes=episodes)
    with CommunicationCount() as filtering:
        InfluenceFilter(scoring=ScoringSettings(health_every_n_iterations=0)).on_rollout_end(loop, module, plan)
    plan = UpdatePlan(episodes=episodes)
    plan.scale(torch.tensor(KEPT_WEIGHTS)[rows], reason="given")
    plan.sealed = True
    with CommunicationCount() as updating:
        run_update(module, plan, module.update_settings)
    return {"filter": filtering.bytes, "update": updating.bytes, "parameters": bytes_of(module)}


def bytes_of(module: PPOModule) -> dict[str, int]:
    """Bytes of the trainable parameters, all and of the language model alone."""
    sizes = {name: parameter.numel() * parameter.element_size() for name, parameter in trainable(module).items()}
    return {"all": sum(sizes.values()), "policy": sum(size for name, size in sizes.items() if "value" not in name)}


def count_gradient_bytes(module: PPOModule) -> dict[str, int]:
    """Count what DDP averages from here on."""
    counted = {"bytes": 0, "buckets": 0}

    def hook(state, bucket):  # torch reads annotations and takes none as text
        counted["bytes"] += bucket.buffer().numel() * bucket.buffer().element_size()
        counted["buckets"] += 1
        return allreduce_hook(state, bucket)

    module.backend.wrapper._forward_module.register_comm_hook(None, hook)
    return counted


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
        module = tiny_module(update={"num_epochs": 2, "minibatch_size": 4, "micro_batch_size": 2})
        before = trainable(module)
        name = f"kept_{counts[0]}_{counts[1]}"
        tiny_loop(folder / name, module, fabric=fabric, callbacks=[KeepByRank(counts)], max_iterations=1).fit()
        assert module.last_stats is not None
        numbers[name] = {
            "optimizer_steps": module.last_stats.optimizer_steps,
            "kept_fraction": module.last_stats.kept_fraction,
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
            counted = count_gradient_bytes(module)
            results = {"weights": filter_rows(loop, module, buffer, rows), **update_rows(module, buffer, rows)}
            torch.save(results, folder / f"halves.{reduction}.{denominator}.rank{rank}.pt")
            numbers["gradients"] = {
                **counted,
                "steps": module.update_settings.num_epochs,
                "parameter_bytes": sum(p.numel() * p.element_size() for p in trainable(module).values()),
            }
    layer_halves(folder, exact)
    module = exact_module()
    buffer = whole_buffer(module)
    loop = tiny_loop(folder / "unused", module, fabric=exact, overwrite=True)
    loop.set_up()
    rows = list(range(rank, len(buffer), 2))
    episodes = module.compute_advantages(buffer.select(rows))
    numbers["communication"] = count_communication(loop, module, episodes, rows)
    if rank == 0:
        nf4_base(folder)
    fabric.barrier()
    for kind in ("lora", "nf4"):
        module = adapter_module(kind, folder)
        buffer = whole_buffer(module)
        several = exact if kind == "lora" else fabric
        loop = tiny_loop(folder / "unused", module, fabric=several, overwrite=True)
        loop.set_up()
        rows = list(range(rank, len(buffer), 2))
        results = {"weights": filter_rows(loop, module, buffer, rows), **update_rows(module, buffer, rows)}
        torch.save(results, folder / f"halves.{kind}.rank{rank}.pt")
    for kind in ("full", "lora", "nf4"):
        several = fabric if kind == "nf4" else exact
        module = adapter_module(kind, folder)
        buffer = whole_buffer(module)
        tiny_loop(folder / "unused", module, fabric=several, overwrite=True).set_up()
        results = update_rows(module, buffer, list(range(rank, len(buffer), 2)), keep_all=True)
        torch.save(results, folder / f"halves.ppo.{kind}.rank{rank}.pt")
        results = sft_step(folder / "unused", several, list(range(rank, 10, 2)), kind=kind)
        torch.save(results, folder / f"halves.sft.{kind}.rank{rank}.pt")
    stats = critic_free_run(folder / "groups", fabric).last_stats
    rewards = stats.episodes.outcome_rewards.view(-1, 2)
    numbers["groups"] = {**stats.metrics, "equal": int((rewards[:, 0] == rewards[:, 1]).sum()), "all": len(rewards)}
    for name in ALGORITHMS:
        module = exact_critic_free(name)
        buffer = whole_buffer(module)
        loop = tiny_loop(folder / "unused", module, fabric=exact, overwrite=True)
        loop.set_up()
        # all responses to a prompt are on one rank
        rows = list(range(rank * len(buffer) // 2, (rank + 1) * len(buffer) // 2))
        results = {"weights": filter_rows(loop, module, buffer, rows), **update_rows(module, buffer, rows)}
        torch.save(results, folder / f"halves.{name}.rank{rank}.pt")
    (folder / f"rank{rank}.json").write_text(json.dumps(numbers), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
