r"""What an iteration costs, on paper, and how far the paper agrees with this machine at three sizes.

    python benchmarks/growth.py                 # measures three sizes, about 4 minutes on 2 cores
    python benchmarks/growth.py --predict       # prints the table for 8B and 70B on 8 to 512 GPUs, measures nothing

The model is that of docs/growth.md: floating-point operations, bytes of memory moved, bytes held, bytes sent. Two
numbers of the machine are fitted at the middle size (operations per second in training, bytes per second in sampling),
the other two sizes are predicted from them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Job:
    """One iteration of I-PPO."""

    parameters: float
    """Weights of the policy."""
    layers: int
    hidden: int
    trained: float
    """Trainable weights: all, or those of the adapter."""
    weight_bytes: float
    """Bytes a frozen weight takes: 4, 2, or 0.55 in NF4 with double quantisation."""
    episodes: int
    """On all ranks."""
    prompt: int
    response: int
    epochs: int = 2
    kept: float = 0.5
    """Fraction of the episodes that the filter keeps."""
    demonstrations: int = 64
    ranks: int = 1
    key_value_fraction: float = 1.0
    """Of the heads, those that keep keys and values (grouped-query attention)."""
    sampled_at_once: int = 256
    """Episodes that a rank samples side by side."""
    micro_batch: int = 4
    """Episodes of one forward and backward."""
    sharded: Literal["no", "gathered for sampling", "layer by layer"] = "no"
    """Whether ranks hold parts of all parameters (fsdp2), and what they gather while they sample."""

    @property
    def tokens(self) -> int:
        """Of one episode."""
        return self.prompt + self.response


@dataclass(frozen=True, kw_only=True)
class Device:
    """A processor, as far as the model knows it."""

    flops: float
    """Operations a second in a training pass."""
    bandwidth: float
    """Bytes a second from memory, which sampling waits for."""
    link: float
    """Bytes a second between nodes, each way, for each rank."""
    node_link: float
    """Bytes a second between the 8 ranks of a node, each way."""
    memory: float
    """Bytes."""


def forward_flops(job: Job, tokens: float, context: float) -> float:
    """Return operations of one forward: two a weight and token, and attention's own."""
    return tokens * (2 * job.parameters + 4 * job.layers * job.hidden * context / 2)


def training_flops(job: Job, tokens: float, context: float) -> float:
    """Return operations of one forward and backward; weights that are frozen need no gradient of their own."""
    part = 1 + 1 + job.trained / job.parameters
    return part * forward_flops(job, tokens, context)


def kv_bytes(job: Job) -> float:
    """Return the bytes that one token's keys and values take."""
    return 2 * job.layers * job.hidden * job.key_value_fraction * 2.0


def seconds(job: Job, device: Device) -> dict[str, float]:
    """Return the seconds of each stage on one rank.

    sampling: each step reads all weights and the cache of keys and values once: the larger of that and its operations.
    scoring under policy and reference: two forwards. Validation gradient and scores: a forward and backward each.
    update: epochs of forward and backward over what is kept. Sent: a ring all-reduce an optimizer step, and one for the
    validation gradient; for sharded parameters see `bytes_sent_sharded`.
    """
    mine = job.episodes / job.ranks
    rounds = max(mine / job.sampled_at_once, 1.0)
    cache = kv_bytes(job) * job.tokens / 2 * min(mine, job.sampled_at_once)
    read = (job.parameters * job.weight_bytes + cache) / device.bandwidth
    compute = forward_flops(job, min(mine, job.sampled_at_once), job.tokens / 2) / device.flops
    episode_tokens = mine * job.tokens
    target_tokens = job.demonstrations * job.tokens / job.ranks
    steps = job.epochs * max(job.kept * job.episodes / (64 * job.ranks), 1.0)
    link = device.node_link if job.ranks <= 8 else device.link
    ring = 2 * (job.ranks - 1) / job.ranks * job.trained * 4
    sent = (steps + 1) * ring if job.sharded == "no" else bytes_sent_sharded(job)
    return {
        "sampling": rounds * job.response * max(read, compute),
        "log-probs": 2 * forward_flops(job, episode_tokens, job.tokens) / device.flops,
        "validation gradient": training_flops(job, target_tokens, job.tokens) / device.flops,
        "scores": training_flops(job, episode_tokens, job.tokens) / device.flops,
        "update": job.epochs * job.kept * training_flops(job, episode_tokens, job.tokens) / device.flops,
        "sent": sent / link,
    }


def parameter_bytes(job: Job) -> float:
    """Return the bytes of all parameters as they are held and gathered: trained ones in float32."""
    return 4 * job.trained + job.weight_bytes * (job.parameters - job.trained)


def bytes_sent_sharded(job: Job) -> float:
    """Return the bytes that a rank receives in an iteration with fsdp2.

    All parameters for each forward and again for each backward, a gradient scattered in each training pass, the
    direction gathered in each scoring pass; and all parameters once per rollout, or once per token.
    """
    mine = job.episodes / job.ranks
    passes = max(mine / job.micro_batch, 1.0)
    targets = max(job.demonstrations / job.ranks / job.micro_batch, 1.0)
    whole, trained = parameter_bytes(job), 4 * job.trained
    rounds = max(mine / job.sampled_at_once, 1.0)
    total = whole * rounds * (job.response if job.sharded == "layer by layer" else 1)
    total += 2 * passes * whole  # log-probs of policy and reference
    total += targets * (2 * whole + trained)
    total += passes * (2 * whole + (trained if job.trained > 0.1 * job.parameters else 0.0))
    total += job.epochs * max(job.kept * passes, 1.0) * (2 * whole + trained)
    return total * (job.ranks - 1) / job.ranks


def memory(job: Job) -> dict[str, float]:
    """Return the bytes per rank stores at the peak of the update.

    frozen weights; trained weights, gradients and Adam's moments in float32, and the direction that scores are taken
    along; activations of a micro-batch with checkpoints at the layers; the cache of sampling.
    """
    held = job.micro_batch * job.tokens * job.hidden * 2.0
    part = 1.0 if job.sharded == "no" else 1.0 / job.ranks
    at_once = {"no": 0.0, "gathered for sampling": 1.0, "layer by layer": 2 / job.layers}[job.sharded]
    return {
        "weights": part * (job.parameters - job.trained) * job.weight_bytes,
        "trained": part * job.trained * (4 + 4 + 8 + 4),
        "gathered": at_once * parameter_bytes(job),
        "activations": held * (job.layers + 16),
        "cache": kv_bytes(job) * job.tokens * job.sampled_at_once,
    }


# --- the check on this machine --------------------------------------------------------------------------------

SIZES = {"2 layers of 64": (2, 64), "4 layers of 128": (4, 128), "6 layers of 256": (6, 256)}
STAGES = {
    "sampling and log-probs": "time/rollout_seconds",
    "validation gradient": "time/target_gradient_seconds",
    "scores": "time/scoring_seconds",
    "update": "time/update_seconds",
}


def measure(layers: int, hidden: int, *, iterations: int) -> tuple[Job, dict[str, float]]:
    """Run I-PPO at one size; return the job, and the median seconds of each stage."""
    import statistics

    from lightning.fabric import Fabric, seed_everything

    from ippo_lightning import FabricLoop, PPOModule
    from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
    from ippo_lightning.data import TextDataModule, arithmetic_tokenizer
    from ippo_lightning.engine import UpdateSettings
    from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
    from ippo_lightning.records import TextEpisodes
    from ippo_lightning.run.settings import LoopSettings
    from ippo_lightning.tasks import ArithmeticTask

    seed_everything(1, verbose=False)
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    policy = CausalLMPolicy(
        config={"model_type": "llama", "num_attention_heads": hidden // 32, **sizes}, tokenizer=arithmetic_tokenizer()
    )
    module = PPOModule(
        policy=policy,
        reward=lambda prompts, responses, examples: [float(len(text) % 3) for text in responses],
        sampling=SamplingSettings(num_responses=4, max_new_tokens=40),
        update=UpdateSettings(num_epochs=2),
    )
    data = TextDataModule(ArithmeticTask(num_train=640, num_validation=4, num_test=4), batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(
            run_dir=folder, max_iterations=iterations, evaluate_every_n_iterations=0, evaluate_first=False,
            test_at_end=False, save_model=False, checkpoint_every_n_iterations=0, progress_bar=False,
        )  # fmt: skip
        scoring = ScoringSettings(health_every_n_iterations=0, max_tokens=2048)
        loop = FabricLoop(
            Fabric(accelerator="cpu"), module, data, callbacks=[InfluenceFilter(scoring=scoring)], settings=settings
        )
        loop.fit()
        rows = [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = rows[1:]
    found = {stage: statistics.median(row[key] for row in rows) for stage, key in STAGES.items()}
    assert module.last_stats is not None
    episodes = cast(TextEpisodes, module.last_stats.episodes)
    weights = sum(parameter.numel() for parameter in policy.language_model.parameters())
    embedding = cast(Any, policy.language_model).get_input_embeddings().weight.numel()
    job = Job(
        parameters=weights - embedding,  # looking up a row costs nothing
        layers=layers,
        hidden=hidden,
        trained=weights - embedding,
        weight_bytes=4,
        episodes=256,
        prompt=int(episodes.prompt_mask.sum(dim=1).float().mean()),
        response=round(statistics.median(row["rollout/response_tokens_mean"] for row in rows)),
        kept=statistics.median(row["update/kept_fraction"] for row in rows),
        demonstrations=sum(len(batch["prompts"]) for batch in data.influence_dataloader()),
    )
    return job, found


def by_stage(job: Job, device: Device) -> dict[str, float]:
    """Return the predicted seconds of the stages that a run's log tells apart."""
    found = seconds(job, device)
    return {
        "sampling and log-probs": found["sampling"] + found["log-probs"],
        "validation gradient": found["validation gradient"],
        "scores": found["scores"],
        "update": found["update"],
    }


def fitted(job: Job, measured: dict[str, float]) -> Device:
    """Return the device under which the model gives what was measured for the update, and for sampling."""
    free = Device(flops=1.0, bandwidth=1e30, link=1e30, node_link=1e30, memory=1e30)
    flops = seconds(job, free)["update"] / measured["update"]
    rest = measured["sampling and log-probs"] - seconds(job, free)["log-probs"] / flops
    unit = seconds(job, Device(flops=1e30, bandwidth=1.0, link=1e30, node_link=1e30, memory=1e30))["sampling"]
    return Device(flops=flops, bandwidth=unit / rest, link=1e30, node_link=1e30, memory=1e30)


def check(iterations: int) -> None:
    """Measure three sizes, fit two numbers at the middle one, print prediction beside measurement."""
    runs = {name: measure(*size, iterations=iterations) for name, size in SIZES.items()}
    device = fitted(*runs["4 layers of 128"])
    print(f"fitted: {device.flops / 1e9:.0f} GFLOP/s in training, {device.bandwidth / 1e9:.2f} GB/s in sampling")
    print("| size | stage | predicted, s | measured, s | ratio |\n|---|---|--:|--:|--:|")
    for name, (job, measured) in runs.items():
        for stage, predicted in by_stage(job, device).items():
            print(f"| {name} | {stage} | {predicted:.3f} | {measured[stage]:.3f} | {predicted / measured[stage]:.2f} |")


# --- large models ---------------------------------------------------------------------------------------------

H100 = Device(flops=4e14, bandwidth=2.4e12, link=4e10, node_link=3e11, memory=80 * GIB)
SHAPES: dict[str, dict[str, Any]] = {
    "8B": {"parameters": 8e9, "layers": 32, "hidden": 4096, "key_value_fraction": 0.25},
    "70B": {"parameters": 7e10, "layers": 80, "hidden": 8192, "key_value_fraction": 0.125},
}
ADAPTERS = {"8B": 4.2e7, "70B": 2.1e8}
"""Weights of LoRA r16 on all linear layers."""


def large_jobs(**sizes: Any) -> dict[str, Job]:
    """Return the jobs of the table, by name."""
    jobs: dict[str, Job] = {}
    for shape, numbers in SHAPES.items():
        full = {"trained": numbers["parameters"], "weight_bytes": 2.0}
        adapter = {"trained": ADAPTERS[shape], "weight_bytes": 2.0}
        ways: dict[str, dict[str, Any]] = {
            "full": full,
            "full, fsdp2": {**full, "sharded": "gathered for sampling"},
            "full, fsdp2 layer by layer": {**full, "sharded": "layer by layer"},
            "LoRA r16": adapter,
            "LoRA r16, fsdp2 layer by layer": {**adapter, "sharded": "layer by layer"},
            "NF4, LoRA r16": {**adapter, "weight_bytes": 0.55},
        }
        jobs |= {f"{shape}, {name}": Job(**numbers, **way, **sizes) for name, way in ways.items()}
    return jobs


def predict() -> None:
    """Print seconds by stage and memory a rank, for 8 episodes a prompt and 32 episodes a rank at the least."""
    print("| model | GPUs | episodes | sampling | log-probs | validation | scores | update | sent | GiB per rank |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    sizes = [{"ranks": ranks, "episodes": max(1024, 32 * ranks)} for ranks in (8, 64, 512)]
    tables = [large_jobs(**size, prompt=256, response=1024, sampled_at_once=32) for size in sizes]
    for name in tables[0]:
        for job in (table[name] for table in tables):
            cells = " | ".join(f"{value:.1f}" for value in seconds(job, H100).values())
            held = sum(memory(job).values()) / GIB
            fits = "" if held <= H100.memory / GIB else " (!)"
            print(f"| {name} | {job.ranks} | {job.episodes} | {cells} | {held:.0f}{fits} |")


def main() -> None:
    """Check or predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--iterations", type=int, default=8)
    options = parser.parse_args()
    if options.predict:
        predict()
    else:
        check(options.iterations)


if __name__ == "__main__":
    main()
