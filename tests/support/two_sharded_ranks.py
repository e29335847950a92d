"""What each of two processes does with a policy that is sharded over them (FSDP2).

python -m torch.distributed.run --nproc_per_node 2 two_sharded_ranks.py FOLDER [slow]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import two_ranks
from communication import CommunicationCount
from lightning import Trainer, seed_everything
from lightning.fabric import Fabric
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from training_parts import TINY, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.distributed.dtensor import full_tensor, is_sharded, local_bytes
from ippo_lightning.engine import load_balancing
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings, encode_prompts, head_blocks
from ippo_lightning.records import UpdatePlan
from ippo_lightning.run.fsdp_strategy import ShardedStrategy
from ippo_lightning.selection import ScoringSettings

RUN = {"evaluate_every_n_iterations": 1, "test_at_end": True, "save_model": True, "max_iterations": 4}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "critic": {"value": "separate"},
    "lora": {"lora": LoraSettings(r=1)},
    "adapter_copy": {"lora": LoraSettings(r=1), "reference": "adapter_copy"},
    "adapter as critic": {"value": "adapter", "lora": LoraSettings(r=1)},
    "head in blocks": {},
}
"""Policies that are sharded."""
SLOW_KINDS = ("critic", "lora", "adapter_copy", "adapter as critic", "head in blocks")
"""Those that only the slow tests look at."""
OTHERS: dict[str, dict[str, Any]] = {
    "bfloat16 under an adapter": {"dtype": "bfloat16", "lora": LoraSettings(r=1)},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "gpt2": {"config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}},
    "tied embeddings": {"config": {**TINY, "tie_word_embeddings": True}},
}
"""Policies that are sharded, filtered, trained and saved."""
FOUR_BITS = ("nf4", "fp4")
SLOW_FOUR_BITS = ("fp4",)
SCORINGS: dict[str, ScoringSettings] = {
    "hooks": ScoringSettings(),
    "small batches": ScoringSettings(max_tokens=30),
    "cosine": ScoringSettings(normalise="cosine"),
    "finite_difference": ScoringSettings(method="finite_difference"),
    "adam_aware": ScoringSettings(adam_aware=True),
    "groups": ScoringSettings(health_every_n_iterations=1, health_groups=3),
}
"""Ways to score a sharded policy."""
NO_GROUPS = ScoringSettings(health_every_n_iterations=0)


def exact_module(kind: str) -> PPOModule:
    """A module in fp64 whose update is one minibatch over everything, in micro-batches of three."""
    ppo = {"minibatch_size": 64, "micro_batch_size": 3, "num_epochs": 2}
    return tiny_module(policy=tiny_policy(config={**TINY, "num_hidden_layers": 2}, **KINDS[kind]), update=ppo).double()


def scores_of(
    loop: Any, module: PPOModule, episodes: Any, scoring: ScoringSettings, *, demonstrations: Any = None
) -> torch.Tensor:
    """Return the scores that the filter would go by."""
    callback = InfluenceFilter(scoring=scoring, demonstrations=demonstrations)
    selector, plan = callback.selector, UpdatePlan(episodes=episodes)
    gradients = selector.take_gradients(plan, module=module, trainer=loop, iteration=0)
    return selector.scorer.score(module, episodes, gradients).scores


def broken_on_one_rank(module: PPOModule, loop: Any, episodes: Any, rank: int) -> dict[str, Any]:
    """Let rank 1 have an episode without a finite score; return what the filter does about it on this rank."""
    advantages = episodes.advantages.clone()
    if rank == 1:
        advantages[1] = torch.nan
    plan = UpdatePlan(episodes=episodes.evolve(advantages=advantages))
    InfluenceFilter(on_nonfinite="skip", power=0.0).on_rollout_end(loop, module, plan)
    try:
        InfluenceFilter().on_rollout_end(loop, module, UpdatePlan(episodes=plan.episodes))
    except FloatingPointError as error:
        return {"weights": plan.weights.tolist(), "stopped": str(error)}
    return {"weights": plan.weights.tolist(), "stopped": None}


def sampled_both_ways(folder: Path, fabric: Fabric) -> dict[str, Any]:
    """Sample until all have stopped, sooner on one rank than on the other; gathered for each token, and once."""
    module = tiny_module()
    tiny_loop(folder / "unused", module, fabric=fabric, overwrite=True).set_up()
    as_asked = not module.policy.gather_for_sampling
    numbers = [str(number) for number in range(0, 100, 2)]
    settings = SamplingSettings(num_responses=2, max_new_tokens=40, stop_tokens=numbers)
    prompts = encode_prompts(module.policy.tokenizer, ["7+12?"], max_length=16)
    drawn, sent = [], []
    for module.policy.gather_for_sampling in (False, True):
        torch.manual_seed(fabric.global_rank)
        with CommunicationCount() as counted:
            drawn.append(module.policy.sample(*prompts, settings).response_ids)
        sent.append(counted.bytes["all_gather_parameters"])
    held = two_ranks.bytes_of(module)["policy"]
    return {
        "as_asked": as_asked,
        "tokens": drawn[0].shape[1],
        "same": torch.equal(*drawn),
        "gathered": [size / held for size in sent],
    }


def uneven_demonstrations(loop: Any) -> list[dict[str, Any]]:
    """Return the demonstrations in three batches of three, two and one: two ranks cannot share them alike."""
    (batch,) = loop.datamodule.influence_dataloader()
    return [{name: column[rows] for name, column in batch.items()} for rows in (slice(3), slice(3, 5), slice(5, 6))]


def halves(folder: Path, kind: str, fabric: Fabric, rows: list[int]) -> tuple[Any, PPOModule, Any]:
    """Return loop, module and this rank's rows of a buffer that every process makes alike."""
    module = exact_module(kind)
    loop, episodes = set_up(folder, module, fabric, rows)
    return loop, module, episodes


def set_up(folder: Path, module: PPOModule, fabric: Fabric, rows: list[int]) -> tuple[Any, Any]:
    """Make a buffer that every process makes alike, then the loop; return it, and some rows of the buffer."""
    buffer = two_ranks.whole_buffer(module)
    loop = tiny_loop(folder / "unused", module, fabric=fabric, overwrite=True)
    loop.set_up()
    return loop, module.compute_advantages(buffer.select(rows))


def four_bit_module(kind: Any, folder: Path) -> PPOModule:
    """An adapter on four-bit weights, in float32."""
    base = str(two_ranks.nf4_base(folder))
    policy = CausalLMPolicy(
        pretrained=base, lora=LoraSettings(r=2), quantization=kind, tokenizer=tiny_policy().tokenizer
    )
    return tiny_module(policy=policy, update={"minibatch_size": 64, "micro_batch_size": 3, "num_epochs": 2})


def sharded(**options: Any) -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=ShardedStrategy(**options))
    fabric.launch()
    return fabric


def trainer_of(folder: Path, *, max_epochs: int) -> Trainer:
    """A Trainer that divides the policy, and runs two iterations an epoch."""
    return Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=max_epochs,
        limit_train_batches=2,
        limit_val_batches=0,
        callbacks=[InfluenceFilter()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


def one_run(folder: Path, fabric: Fabric, **changes: Any) -> dict[str, Any]:
    """Run with the filter; return metrics and all parameters."""
    module = tiny_module(update={"num_epochs": 2, "minibatch_size": 4, "micro_batch_size": 3})
    metrics = tiny_loop(folder, module, fabric=fabric, callbacks=[InfluenceFilter()], **{**RUN, **changes}).fit()
    return {"metrics": metrics, "parameters": trainable(module)}


def compare_halves(folder: Path, fabric: Fabric, numbers: dict[str, Any], kinds: Iterable[str]) -> None:
    """Score halves of one buffer in every way, weight them, and update."""
    rank = fabric.global_rank
    for kind in kinds:
        # some blocks per pass, and not the same number on both ranks
        head_blocks.BLOCK_ENTRIES = 300 if kind == "head in blocks" else 2**24
        loop, module, episodes = halves(folder, kind, fabric, [0, 2, 4, 6, 7] if rank == 0 else [1, 3, 5])
        assert is_sharded(module)
        selector, plan = InfluenceFilter().selector, UpdatePlan(episodes=episodes)
        direction = selector.take_gradients(plan, module=module, trainer=loop, iteration=0).mean
        numbers[f"{kind}.direction_is_sharded"] = any(isinstance(block, DTensor) for block in direction.values())
        results = {f"scores.{name}": scores_of(loop, module, episodes, way) for name, way in SCORINGS.items()}
        uneven = scores_of(loop, module, episodes, NO_GROUPS, demonstrations=uneven_demonstrations(loop))
        results["scores.uneven demonstrations"] = uneven
        results |= {f"direction.{name}": full_tensor(block) for name, block in direction.items()}
        if kind == "full":
            numbers["broken"] = broken_on_one_rank(module, loop, episodes, rank)
        rows = [0, 2, 4, 6, 7] if rank == 0 else [1, 3, 5]
        # four kept on one rank, one on the other: shared out anew, or not, which takes passes of weight zero
        load_balancing._TOLERATED = 100.0 if kind in ("full", "critic") else 1.1
        results |= two_ranks.update_episodes(module, episodes, rows)
        load_balancing._TOLERATED = 1.1
        torch.save(results, folder / f"halves.{kind}.rank{rank}.pt")


def compare_four_bits(folder: Path, fabric: Fabric, numbers: dict[str, Any], kinds: Iterable[str]) -> None:
    """Score and update halves of one buffer with an adapter on four-bit weights."""
    rank = fabric.global_rank
    if rank == 0:
        two_ranks.nf4_base(folder)
    fabric.barrier()
    rows = [0, 2, 4, 6, 7] if rank == 0 else [1, 3, 5]
    for kind in kinds:
        module = four_bit_module(kind, folder)
        loop, episodes = set_up(folder, module, fabric, rows)
        results = {"scores": scores_of(loop, module, episodes, SCORINGS["hooks"])}
        results |= two_ranks.update_episodes(module, episodes, rows)
        torch.save(results, folder / f"halves.{kind}.rank{rank}.pt")
        numbers[f"{kind}.bytes"] = local_bytes(list(module.policy.model.parameters()))


def train_others(folder: Path, fabric: Fabric, numbers: dict[str, Any]) -> None:
    """Filter, train and save the other policies; record whether they changed."""
    for name, settings in OTHERS.items():
        module = tiny_module(policy=tiny_policy(**settings))
        before = trainable(module)
        loop = tiny_loop(folder / name, module, fabric=fabric, callbacks=[InfluenceFilter()], save_model=True)
        loop.fit()
        numbers[name] = not all(torch.equal(before[key], value) for key, value in trainable(module).items())


def compare_with_trainer(folder: Path, fabric: Fabric, numbers: dict[str, Any]) -> None:
    """Make the same run by Trainer and by the loop, and one by Trainer with an interruption."""
    rank = fabric.global_rank
    seed_everything(5, verbose=False)
    by_trainer = tiny_module()
    trainer = trainer_of(folder, max_epochs=1)
    trainer.fit(by_trainer, tiny_data())
    by_loop = tiny_module()
    tiny_loop(folder / "loop", by_loop, fabric=fabric, callbacks=[InfluenceFilter()], seed=5).fit()
    numbers["trainer_is_sharded"] = is_sharded(by_trainer)
    torch.save(trainable(by_trainer), folder / f"trainer.rank{rank}.pt")
    torch.save(trainable(by_loop), folder / f"loop.rank{rank}.pt")
    trainer.save_checkpoint(folder / "trainer.ckpt")
    resumed_by_trainer = tiny_module()
    trainer_of(folder, max_epochs=2).fit(resumed_by_trainer, tiny_data(), ckpt_path=str(folder / "trainer.ckpt"))
    seed_everything(5, verbose=False)
    unbroken = tiny_module()
    trainer_of(folder, max_epochs=2).fit(unbroken, tiny_data())
    numbers["trainer_resumes"] = all(
        torch.equal(value, trainable(resumed_by_trainer)[name]) for name, value in trainable(unbroken).items()
    )


def main(folder: Path, part: str = "") -> None:
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="fsdp2")
    fabric.launch()
    rank = fabric.global_rank
    numbers: dict[str, Any] = {}
    if part == "slow":
        compare_halves(folder, fabric, numbers, SLOW_KINDS)
        compare_four_bits(folder, fabric, numbers, SLOW_FOUR_BITS)
        one_run(folder / "whole", fabric)
        one_run(folder / "layerwise", sharded(gather_for_sampling=False))
        train_others(folder, fabric, numbers)
        compare_with_trainer(folder, fabric, numbers)
    else:
        compare_halves(folder, fabric, numbers, [kind for kind in KINDS if kind not in SLOW_KINDS])
        compare_four_bits(folder, fabric, numbers, [kind for kind in FOUR_BITS if kind not in SLOW_FOUR_BITS])
        other_scenarios(folder, fabric, numbers)
    (folder / f"rank{rank}.json").write_text(json.dumps(numbers), encoding="utf-8")


def other_scenarios(folder: Path, fabric: Fabric, numbers: dict[str, Any]) -> None:
    """Count what is sent, run from end to end, resume, keep different numbers per rank, and train supervised."""
    rank = fabric.global_rank
    module = four_bit_module("nf4", folder)
    tiny_loop(folder / "four bits", module, fabric=fabric, callbacks=[InfluenceFilter()], save_model=True).fit()

    rows = [0, 2, 4, 6] if rank == 0 else [1, 3, 5, 7]
    loop, module, episodes = halves(folder, "full", fabric, rows)
    numbers["communication"] = two_ranks.count_communication(loop, module, episodes, rows)

    # a run from end to end; another that does not gather for sampling; one that is broken off and resumes
    whole_run = one_run(folder / "whole", fabric)
    numbers["sampled"] = sampled_both_ways(folder, sharded(gather_for_sampling=False))
    one_run(folder / "resumed", fabric, max_iterations=2)
    resumed = one_run(folder / "resumed", fabric, resume=True)
    for name, run in (("whole", whole_run), ("resumed", resumed)):
        torch.save(run["parameters"], folder / f"{name}.rank{rank}.pt")
        numbers[name] = run["metrics"]

    # ranks that keep different numbers, or nothing
    for counts in ((3, 0), (0, 0), (1, 16)):
        module = tiny_module(update={"num_epochs": 2, "minibatch_size": 4, "micro_batch_size": 2})
        before = trainable(module)
        name = f"kept_{counts[0]}_{counts[1]}"
        keep = two_ranks.KeepByRank(counts)
        tiny_loop(folder / name, module, fabric=fabric, callbacks=[keep], max_iterations=1).fit()
        assert module.last_stats is not None
        numbers[name] = {
            "optimizer_steps": module.last_stats.optimizer_steps,
            "changed": not all(torch.equal(before[key], value) for key, value in trainable(module).items()),
        }

    rows = list(range(7)) if rank == 0 else list(range(7, 10))
    torch.save(two_ranks.sft_step(folder / "unused", fabric, rows), folder / f"sft.rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
