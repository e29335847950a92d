"""Two ranks, each with an engine of its own, train one policy; what each samples is compared with its own policy.

python -m torch.distributed.run --nproc_per_node 2 two_ranks_vllm.py FOLDER full|lora
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric
from training_parts import tiny_loop, tiny_module

from ippo_lightning.algorithms import GroupBaseline
from ippo_lightning.modules import OptimizerSettings, PPOModule
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings

MODEL = str(Path(__file__).parents[2] / "experiments/models/arithmetic_llama")
ENGINE = {"enforce_eager": True, "max_model_len": 64, "max_num_seqs": 16}
TEXTS = ["7+12=?", "1?", "3*4?", "2+2+2+2?"]


def vllm_module(lora: LoraSettings | None = None, **changes: object) -> PPOModule:
    """A module that samples with vLLM and trains all of its weights, or an adapter, in large steps."""
    policy = CausalLMPolicy(pretrained=MODEL, value="none", reference="none", lora=lora)
    sampling = SamplingSettings(num_responses=2, max_new_tokens=16, sampler="vllm", engine=ENGINE)
    optimizer = OptimizerSettings(learning_rate=3e-3)
    return tiny_module(policy=policy, sampling=sampling, advantages=GroupBaseline(), optimizer=optimizer, **changes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    folder = Path(sys.argv[1])
    module = vllm_module(LoraSettings() if sys.argv[2] == "lora" else None, importance_cap=2.0)
    tiny_loop(folder / "run", module, fabric=fabric, max_iterations=2).fit()
    numbers = {"num_responses": 1, "max_new_tokens": 16, "greedy": True}
    prompts = module.policy.text.encode_prompts(TEXTS, max_length=32)
    drawn = module.policy.sample(*prompts, SamplingSettings(**numbers, sampler="vllm", engine=ENGINE))
    plain = module.policy.sample(*prompts, SamplingSettings(**numbers))
    found = {"greedy": drawn.response_ids.tolist(), "plain": plain.response_ids.tolist()}
    (folder / f"rank{fabric.global_rank}.json").write_text(json.dumps(found), encoding="utf-8")
