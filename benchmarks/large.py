"""One iteration with a large model on one device: seconds and peak memory, stage by stage.

    python benchmarks/large.py                       # a GPU; 1B, NF4 + LoRA r16, 256 episodes of 128 + 256 tokens
    python benchmarks/large.py --weights bfloat16    # the same on weights that are not quantised
    python benchmarks/large.py --largest             # the largest shape that goes through an iteration
    python benchmarks/large.py --device cpu --shape tiny --episodes 8 --prompt 8 --response 8

The model is shaped like a Llama and has random weights. Prompts have exactly `--prompt` tokens; responses end at
`--response`, as random weights hardly ever draw the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric, seed_everything

from ippo_lightning import PPOModule
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.engine import UpdateSettings, run_update
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings
from ippo_lightning.records import TextEpisodes, UpdatePlan

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "14B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40},
    "32B": {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
WAYS = ("hooks", "finite_difference", "per_episode")
SLOW = 16
"""Episodes that one backward each is made for: its time per episode does not depend on how many there are."""


class Host:
    """What the module asks of the loop that runs it."""

    callbacks: Sequence[Any] = ()
    max_iterations = 1
    should_stop = False


def save_base(options: argparse.Namespace, folder: Path) -> None:
    """Write a model with random weights, unless the folder has it: loading is faster than drawing on a CPU.

    Args:
        options: sizes and device.
        folder: of the model, for transformers.
    """
    if (folder / "config.json").is_file():
        return
    positions = options.prompt + options.response + 8
    config = {"model_type": "llama", **SHAPES[options.shape], "num_key_value_heads": options.key_value_heads}
    config |= {"vocab_size": options.vocab, "max_position_embeddings": positions, "tie_word_embeddings": True}
    # Drawn on the device, and not checked: the check draws on a CPU, and would load what is saved a second time.
    settings: dict[str, Any] = {"value": "none", "reference": "none", "self_check": False}
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    with torch.device(options.device):
        plain = CausalLMPolicy(config=config, tokenizer=arithmetic_tokenizer(), dtype=dtype, **settings)
    plain.save_pretrained(folder)


def build(options: argparse.Namespace, folder: Path) -> PPOModule:
    """Return the module on the device; its base lies in a folder, which is written first if it is missing."""
    save_base(options, folder)
    collect(options.device)
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    policy = CausalLMPolicy(
        pretrained=str(folder),
        tokenizer=arithmetic_tokenizer(),
        quantization="nf4" if options.weights == "nf4" else None,
        dtype=dtype,
        lora=LoraSettings(r=16),
        gradient_checkpointing=options.gradient_checkpointing,
        self_check=False,
    )
    module = PPOModule(
        policy=policy,
        reward=lambda prompts, responses, examples: [float(len(text) % 3) for text in responses],
        sampling=SamplingSettings(num_responses=1, max_new_tokens=options.response, cache=options.cache),
        update=UpdateSettings(num_epochs=2, minibatch_size=64, micro_batch_size=options.micro_batch),
        optimizer=OptimizerSettings(kind="adamw"),
    )
    fabric = Fabric(accelerator="cpu" if options.device == "cpu" else "cuda", devices=1)
    fabric.launch()
    wrapper = fabric.setup(module, module.configure_optimizers())[0]
    wrapper.mark_forward_method(module.loss_method)
    module.attach(Host(), wrapper=wrapper)
    return module


def collect(device: str) -> None:
    """Give back the memory of what is gone."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


class Meter:
    """Seconds and peak memory of one stage after another."""

    def __init__(self, device: str) -> None:
        self.is_gpu = device != "cpu"
        self.rows: dict[str, dict[str, float]] = {}

    def take(self, name: str, action: Callable[[], Any]) -> Any:
        """Run a stage and note what it took."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = action()
        if self.is_gpu:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.is_gpu else float("nan")
        self.rows[name] = {"seconds": time.perf_counter() - start, "gib": peak}
        return result


def prompts_of(options: argparse.Namespace) -> dict[str, list[Any]]:
    """Return prompts of exactly the wanted number of tokens."""
    texts = [("123456789+"[number % 10] + "7+12-5?") * options.prompt for number in range(options.episodes)]
    return {"prompts": [text[: options.prompt] for text in texts], "examples": [{}] * options.episodes}


def scored(module: PPOModule, episodes: TextEpisodes, direction: Any, *, way: str, size: int) -> torch.Tensor:
    """Score all episodes by one way, or the first few by one backward each."""
    if way == "per_episode":
        episodes, size = episodes.select(torch.arange(min(SLOW, len(episodes)), device=episodes.device)), 1
    batches = [episodes.select(rows) for rows in torch.arange(len(episodes), device=episodes.device).split(size)]
    return influence_scores(
        module,
        lambda model, batch: model.episode_losses(batch),
        batches,
        direction,
        method=way,  # type: ignore[arg-type]
        known_losses=cast(Any, module.rollout_losses) if way == "finite_difference" else None,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one iteration, stage by stage, after a small one that warms up."""
    seed_everything(1, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        module = build(options, Path(folder))
        meter = Meter(options.device)
        few = argparse.Namespace(**{**vars(options), "episodes": 4})
        one_iteration(module, few, Meter(options.device))
        scores = one_iteration(module, options, meter)
    exact = scores["hooks"]
    signs = {way: (found.sign() == exact[: len(found)].sign()).float().mean() for way, found in scores.items()}
    return {
        "stages": meter.rows,
        "parameters": sum(parameter.numel() for parameter in module.policy.language_model.parameters()),
        "signs": {way: float(value) for way, value in signs.items()},
        "episodes": {way: len(found) for way, found in scores.items()},
    }


def one_iteration(module: PPOModule, options: argparse.Namespace, meter: Meter) -> dict[str, torch.Tensor]:
    """Sample, score by every way, update; return the scores."""
    batch = prompts_of(options)
    episodes = meter.take("sampling and log-probs", lambda: module.rollout(module.plan_rollout(batch)))
    episodes = module.compute_advantages(module.compute_rewards(episodes))
    prompts = batch["prompts"][:16]
    texts = {"prompts": prompts, "responses": [("7+12=19;" * options.response)[: options.response]] * len(prompts)}
    direction = meter.take(
        "validation gradient",
        lambda: target_gradient(module, lambda model, part: model.validation_loss(part), [texts]),
    )
    ways = WAYS if not options.largest else ("hooks",)
    scores = {}
    for way in ways:
        score = partial(scored, module, episodes, direction, way=way, size=options.micro_batch)
        scores[way] = meter.take(f"scores: {way}", score)
    plan = UpdatePlan(episodes=episodes)
    plan.sealed = True
    meter.take("update, 2 epochs, all kept", lambda: run_update(module, plan, module.update_settings))
    return scores


def table(found: dict[str, Any]) -> str:
    """Return the stages as a table for RESULTS.md."""
    lines = ["| stage | seconds | peak, GiB |", "|---|--:|--:|"]
    lines += [f"| {name} | {row['seconds']:.2f} | {row['gib']:.1f} |" for name, row in found["stages"].items()]
    seconds = {name: row["seconds"] for name, row in found["stages"].items()}
    if "scores: per_episode" in seconds:
        by_episode = {way: seconds[f"scores: {way}"] / count for way, count in found["episodes"].items()}
        faster = by_episode["per_episode"] / by_episode["hooks"]
        count = found["episodes"]["per_episode"]
        lines.append(f"\nper_episode scores {count} episodes only; by episode, hooks are {faster:.1f} times as fast")
        lines.append(f"signs alike: {found['signs']}")
    return "\n".join(lines)


def largest(options: argparse.Namespace) -> str | None:
    """Return the largest shape that goes through an iteration before memory is short."""
    fits = None
    for shape in list(SHAPES)[1:]:
        options.shape = shape
        try:
            print(shape, table(measure(options)), sep="\n", flush=True)
        except torch.OutOfMemoryError:
            print(f"{shape}: out of memory")
            break
        fits = shape
        gc.collect()
        torch.cuda.empty_cache()
    return fits


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="1B")
    parser.add_argument("--weights", choices=["nf4", "bfloat16"], default="nf4")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--response", type=int, default=256)
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--key_value_heads", type=int, default=4)
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--largest", action="store_true", help="shape after shape, until memory is short")
    parser.add_argument("--json", help="file for the numbers")
    options = parser.parse_args()
    if options.largest:
        print("largest that fits:", largest(options))
        return
    found = measure(options)
    print(f"{options.shape}, {options.weights}: {found['parameters'] / 1e9:.2f} G parameters as stored")
    print(table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
