"""Samplers behind one interface: transformers' loop, its continuous batching, and vLLM."""

from ippo_lightning.policies.generation.request import Request, Samples
from ippo_lightning.policies.generation.sampler import Sampler, build_sampler

__all__ = ["Request", "Sampler", "Samples", "build_sampler"]
