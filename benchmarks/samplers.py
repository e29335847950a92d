"""How long each way of sampling takes, beside transformers' loop with a growing cache.

    python benchmarks/samplers.py                                  # the arithmetic model, 256 responses
    python benchmarks/samplers.py --pretrained FOLDER --device cuda --max_new_tokens 512

Turn about, so that whatever else the machine does hits all alike; the first round warms up and does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ippo_lightning.data import TextDataModule
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings, encode_prompts
from ippo_lightning.tasks import ArithmeticTask

WAYS: dict[str, dict[str, Any]] = {
    "dynamic cache": {},
    "dynamic cache, 64 side by side": {"batch_size": 64},
    "static cache": {"cache": "static"},
    "continuous batching": {"sampler": "continuous"},
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
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(options.rounds + 1):
        for name, way in WAYS.items():
            settings = SamplingSettings(num_responses=4, max_new_tokens=options.max_new_tokens, **way)
            torch.manual_seed(number)
            start = time.perf_counter()
            policy.sample(prompts[0], prompts[1], settings)
            if options.device == "cuda":
                torch.cuda.synchronize()
            seconds[name] += [time.perf_counter() - start] if number else []
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {name: {"seconds": taken, "ratio": taken / medians["dynamic cache"]} for name, taken in medians.items()}


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
    print("| way | seconds | ratio |\n|---|--:|--:|")
    for name, row in found.items():
        print(f"| {name} | {row['seconds']:.2f} | {row['ratio']:.2f} |")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
