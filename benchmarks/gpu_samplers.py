"""The part `samplers` of benchmarks/gpu.py: ways of sampling beside each other, each with its first call."""

from __future__ import annotations

import argparse
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import large
import torch
from gpu_shapes import shape_options

from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings, encode_prompts

if TYPE_CHECKING:
    from gpu_parts import Rows

WAYS: dict[str, dict[str, Any]] = {
    "generate, dynamic cache": {},
    "generate, 32 at a time": {"batch_size": 32},
    "continuous batching": {"sampler": "continuous"},
    "vLLM": {"sampler": "vllm", "engine": {"gpu_memory_utilization": 0.3}},
    # Last: its compilation may take longer than the part.
    "generate, static cache, compiled": {"cache": "static"},
}
"""transformers compiles the step of a static cache on a GPU by itself."""


def samplers(options: argparse.Namespace, rows: Rows) -> None:
    """Sample from a model of 1B in bfloat16."""
    chosen = shape_options(options)
    responses = 8 if options.tiny else 128
    folder = Path(options.scratch) / "1B"
    large.save_base(chosen, folder)
    tokenizer = arithmetic_tokenizer()
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    source: dict[str, Any] = {"pretrained": str(folder), "tokenizer": tokenizer, "dtype": dtype}
    policy = CausalLMPolicy(**source, value="none", reference="none", self_check=False).to(options.device)
    texts = large.prompts_of(argparse.Namespace(prompt=chosen.prompt, episodes=8 if options.tiny else 128))["prompts"]
    room = policy.context_length - responses
    prompts = [part.to(options.device) for part in encode_prompts(policy.tokenizer, texts, max_length=room)]
    for name, way in WAYS.items():
        if way.get("sampler") == "vllm" and find_spec("vllm") is None:
            rows.add(name, value="vllm is absent")
            continue
        try:
            settings = SamplingSettings(num_responses=1, max_new_tokens=responses, **way)
            first, second = (_seconds(policy, prompts, settings, options.device) for _ in range(2))
        except Exception as error:  # an engine may fail in any way; the others still have rows
            rows.fail(name, error)
            traceback.print_exc()
            continue
        rows.add(
            name, value=f"first call {first:.2f} s", seconds=second, tokens_per_second=len(texts) * responses / second
        )


def _seconds(policy: CausalLMPolicy, prompts: list[Any], settings: SamplingSettings, device: str) -> float:
    torch.manual_seed(0)
    start = time.perf_counter()
    policy.sample(prompts[0], prompts[1], settings)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
