"""Policies: language models with critic, reference, adapters and 4-bit weights; small networks for environments."""

from ippo_lightning.policies.actor_critic import CNN, MLP, ActionSpec, ActorCritic, ObservationSpec, PolicyBuilder
from ippo_lightning.policies.causal_lm import CausalLMPolicy
from ippo_lightning.policies.generation.request import Samples
from ippo_lightning.policies.output import PolicyOutput
from ippo_lightning.policies.reference import ReferenceKind
from ippo_lightning.policies.settings import LoraSettings, SamplingSettings
from ippo_lightning.policies.tokenization import EncodedResponses, encode_demonstrations, encode_prompts

__all__ = [
    "CNN",
    "MLP",
    "ActionSpec",
    "ActorCritic",
    "CausalLMPolicy",
    "EncodedResponses",
    "LoraSettings",
    "ObservationSpec",
    "PolicyBuilder",
    "PolicyOutput",
    "ReferenceKind",
    "Samples",
    "SamplingSettings",
    "encode_demonstrations",
    "encode_prompts",
]
