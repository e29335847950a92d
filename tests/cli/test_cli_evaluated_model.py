"""Another model in place of that of a run: nothing of the run's own model stays with it."""

from __future__ import annotations

import inspect

from ippo_lightning.cli.evaluated_model import _OF_ANOTHER_MODEL
from ippo_lightning.policies import CausalLMPolicy

STAYS = {
    "chat_template",
    "system_prompt",
    "special_tokens",
    "seed",
    "double_quantization",  # without effect, as the weights are not quantised
    "dtype",
    "value",
    "value_init_std",
    "gradient_checkpointing",
    "attn_implementation",
    "keep_dropout",
    "self_check",
    "trust_remote_code",
}
"""What belongs to the run and not to its model."""


def test_each_argument_of_a_policy_is_the_models_or_stays() -> None:
    arguments = set(inspect.signature(CausalLMPolicy).parameters)
    decided = {"pretrained", *_OF_ANOTHER_MODEL, *STAYS}
    assert arguments == decided, "add a new argument to _OF_ANOTHER_MODEL if another model must not have it, or here"
    assert not STAYS & _OF_ANOTHER_MODEL.keys()
