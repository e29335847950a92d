"""One interface for all samplers, and the one place that chooses among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.policies.generation.continuous_batching import ContinuousSampler
from ippo_lightning.policies.generation.generate import GenerateSampler
from ippo_lightning.policies.generation.request import Request, Samples
from ippo_lightning.policies.generation.vllm import VLLMSampler
from ippo_lightning.policies.settings import SamplingSettings

if TYPE_CHECKING:
    from ippo_lightning.policies.causal_lm import CausalLMPolicy


class Sampler(Protocol):
    """Draws one response per row of a request and leaves the policy unchanged."""

    def __call__(self, request: Request) -> Samples:
        """Return one response per row, in the order of the rows."""


def build_sampler(policy: CausalLMPolicy, settings: SamplingSettings) -> Sampler:
    """Return a new sampler for a policy; it owns the engine it needs, if any.

    Samplers refer to the policy's network and not to the policy: the policy keeps its samplers, and a reference back
    would delay the release of its memory.

    Args:
        policy: what the sampler draws from.
        settings: `sampler`, `engine` and `dtype` are read here; the other fields come with each request.

    Raises:
        UserError: the sampler does not support this policy, or is not installed.
    """
    network, sharded = policy.language_model, is_sharded(policy.language_model)
    if settings.sampler != "generate" and sharded:
        raise UserError(
            f"sampling.sampler: {settings.sampler} needs full parameters, and fsdp2 shards them; use generate"
        )
    if settings.sampler == "continuous":
        return ContinuousSampler(network)
    if settings.sampler == "vllm":
        engine = {} if settings.dtype is None else {"dtype": settings.dtype}
        return VLLMSampler(policy.model, policy.tokenizer, source=policy.source, options={**engine, **settings.engine})
    gather = sharded and policy.gather_for_sampling
    return GenerateSampler(network, gather=gather, synced=sharded and not gather)


def sampler_key(policy: CausalLMPolicy, settings: SamplingSettings) -> tuple[str | int, ...]:
    """Return everything that `build_sampler` reads and that can change; equal keys mean that a sampler still fits.

    Args:
        policy: what the sampler draws from.
        settings: as for `build_sampler`.
    """
    network, options = policy.language_model, repr((settings.dtype, sorted(settings.engine.items())))
    # The identity of the network is part of the key, so that a replaced model is never sampled from again. It is not
    # reused: the old sampler keeps the old network alive.
    return settings.sampler, options, id(network), is_sharded(network), policy.gather_for_sampling
