"""How long each way of sampling takes, beside transformers' loop with a growing cache.

    python benchmarks/samplers.py                                  # the arithmetic model, 256 responses
    python benchmarks/samplers.py --pretrained FOLDER --device cuda --max_new_tokens 512

On a GPU, transformers compiles the step of the static cache. vLLM is left out where it is not installed; a way that
fails is left out with its reason. `gap` is the mean absolute gap of the log-probs of sampler and policy, in nats.

Turn about, so that whatever else the machine does hits all alike; the first round warms up and does not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings, encode_prompts
from ippo_lightning.tasks import ArithmeticTask

WAYS: dict[str, dict[str, Any]] = {
    "dynamic cache": {},
    "dynamic cache, 64 side by side": {"batch_size": 64},
    "static cache": {"cache": "static"},
    "half precision": {"dtype": "bfloat16"},
    "continuous batching": {"sampler": "continuous"},
    "vLLM": {"sampler": "vllm"},
    "vLLM, half precision": {"sampler": "vllm", "dtype": "bfloat16"},
}


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return seconds and the ratio to the first way."""
    policy = CausalLMPolicy(pretrained=options.pretrained, value="none", reference="none").to(options.device)
    task = ArithmeticTask(max_terms=3, num_train=640, num_validation=4, num_test=4)
    data = TextDataModule(task, batch_size=options.prompts)
    data.setup()
    texts = next(iter(data.train_dataloader()))["prompts"]
    room = policy.context_length - options.max_new_tokens
    prompts = [part.to(options.device) for part in encode_prompts(policy.tokenizer, texts, max_length=room)]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS if has_vllm() or "vLLM" not in name}
    gaps: dict[str, float] = {}
    for number in range(options.rounds + 1):
        for name in list(seconds):
            try:
                taken, gaps[name] = once(policy, prompts, name, options, seed=number)
            except (UserError, OSError, RuntimeError) as error:
                print(f"{name} is left out: {str(error).splitlines()[0]}")
                del seconds[name]
                continue
            seconds[name] += [taken] if number else []
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    first = medians["dynamic cache"]
    return {name: {"seconds": taken, "ratio": taken / first, "gap": gaps[name]} for name, taken in medians.items()}


def has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


def once(
    policy: CausalLMPolicy, prompts: list[Tensor], name: str, options: argparse.Namespace, *, seed: int
) -> tuple[float, float]:
    """Return the seconds of one call, and the gap of its log-probs; NaN if it reports none."""
    own: dict[str, Any] = {}
    if "vLLM" in name:
        # The policy and both engines share the device.
        own = {"engine": {"gpu_memory_utilization": 0.3} if options.device == "cuda" else {"enforce_eager": True}}
    settings = SamplingSettings(num_responses=4, max_new_tokens=options.max_new_tokens, **WAYS[name], **own)
    torch.manual_seed(seed)
    start = time.perf_counter()
    samples = policy.sample(prompts[0], prompts[1], settings)
    if options.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if samples.log_probs is None:
        return seconds, math.nan
    few = slice(0, 4)
    mask = samples.response_mask[few]
    with torch.no_grad():
        # four responses to the first prompt
        rows = [part[:1].expand(4, -1) for part in prompts]
        scored = policy(rows[0], rows[1], samples.response_ids[few], mask).log_probs
    return seconds, float((scored - samples.log_probs[few])[mask].abs().mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", default="experiments/models/arithmetic_llama")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="file for the numbers")
    options = parser.parse_args()
    found = measure(options)
    print("| way | seconds | ratio | gap |\n|---|--:|--:|--:|")
    for name, row in found.items():
        print(f"| {name} | {row['seconds']:.2f} | {row['ratio']:.2f} | {row['gap']:.1e} |")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
