"""Which sampler draws: transformers' loop, its continuous batching, or vLLM."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel

from ippo_lightning.distributed.collectives import world_size
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.distributed.lockstep import gathered
from ippo_lightning.errors import UserError
from ippo_lightning.policies.generation.continuous_batching import continuous_responses
from ippo_lightning.policies.generation.generate import Request, Samples, draw, generate_responses
from ippo_lightning.policies.generation.vllm import VLLMEngine
from ippo_lightning.policies.reference import POLICY_ADAPTER
from ippo_lightning.policies.saving import save_adapter

if TYPE_CHECKING:
    from ippo_lightning.policies.causal_lm import CausalLMPolicy


def sample_from(policy: CausalLMPolicy, request: Request) -> Samples:
    """Draw a response for each row with the sampler that the request's settings name.

    Args:
        policy: left as it was.
        request: what is to be drawn.

    Raises:
        UserError: the sampler does not go with the policy, or is not installed.
    """
    network, kind = policy.language_model, request.settings.sampler
    sharded = is_sharded(network)
    if kind != "generate" and sharded:
        raise UserError(f"sampling.sampler: {kind} needs whole parameters, and fsdp2 divides them; use generate")
    if kind == "continuous":
        return draw(request, partial(continuous_responses, network))
    if kind == "vllm":
        engine = _engine_of(policy, request)
        write = partial(_written_adapter, policy)
        return draw(request, lambda part: engine.responses(part, save_adapter=write))
    gathers = sharded and policy.gather_for_sampling
    with gathered(network) if gathers else nullcontext():
        return draw(request, partial(generate_responses, network, together=sharded and not gathers))


def _engine_of(policy: CausalLMPolicy, request: Request) -> VLLMEngine:
    """Return the policy's engine, started with the first request."""
    if policy.engine is None:
        options = request.settings.engine
        source = policy.source
        if not isinstance(policy.model, PeftModel) or source.pretrained is None:
            raise UserError("sampling.sampler: vllm gets the adapter of a saved base; set policy.lora and pretrained")
        if source.quantization is not None and "quantization" not in options:
            raise UserError(
                f"sampling.engine: no quantization, while the policy's base is {source.quantization}; responses would "
                "be those of another model; set engine.quantization, for example to bitsandbytes"
            )
        if world_size() > 1:
            raise UserError("sampling.sampler: vllm runs beside one process only; use generate or continuous")
        policy.engine = VLLMEngine(
            base=source.pretrained,
            max_lora_rank=policy.model.peft_config[POLICY_ADAPTER].to_dict()["r"],
            dtype=source.dtype,
            trust_remote_code=source.trust_remote_code,
            options=options,
        )
    return policy.engine


def _written_adapter(policy: CausalLMPolicy, folder: Path) -> Path:
    """Save the adapter as vLLM reads it: its files in the folder itself."""
    assert isinstance(policy.model, PeftModel)
    save_adapter(policy.model, policy.tokenizer, folder)
    inner = folder / POLICY_ADAPTER
    return inner if (inner / "adapter_config.json").is_file() else folder
