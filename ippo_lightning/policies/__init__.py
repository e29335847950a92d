"""Language-model policies: sampling, scoring, critic, reference, adapters, 4-bit weights."""

from ippo_lightning.policies.causal_lm import CausalLMPolicy, PolicyOutput
from ippo_lightning.policies.encoding import EncodedResponses, encode_demonstrations, encode_prompts
from ippo_lightning.policies.reference import ReferenceKind
from ippo_lightning.policies.sampling import Samples
from ippo_lightning.policies.settings import LoraSettings, SamplingSettings

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
