"""Language-model policies: sampling, scoring, critic, reference, adapters, 4-bit weights."""

from ippo_lightning.policies.causal_lm import CausalLMPolicy
from ippo_lightning.policies.generation.request import Samples
from ippo_lightning.policies.output import PolicyOutput
from ippo_lightning.policies.reference import ReferenceKind
from ippo_lightning.policies.settings import LoraSettings, SamplingSettings
from ippo_lightning.policies.tokenization import EncodedResponses, encode_demonstrations, encode_prompts

__all__ = [
    "CausalLMPolicy",
    "EncodedResponses",
    "LoraSettings",
    "PolicyOutput",
    "ReferenceKind",
    "Samples",
    "SamplingSettings",
    "encode_demonstrations",
    "encode_prompts",
]
