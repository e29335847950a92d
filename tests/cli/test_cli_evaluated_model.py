"""Another model in place of that of a run: nothing of the run's own model stays with it."""

from __future__ import annotations

import inspect

import pytest
from jsonargparse import Namespace

from ippo_lightning.cli.evaluated_model import _OF_ANOTHER_MODEL, EvaluatedModel, use_model
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
}
"""What belongs to the run and not to its model."""


def test_each_argument_of_a_policy_is_the_models_or_stays() -> None:
    arguments = set(inspect.signature(CausalLMPolicy).parameters)
    decided = {"pretrained", *_OF_ANOTHER_MODEL, *STAYS}
    assert arguments == decided, "add a new argument to _OF_ANOTHER_MODEL if another model must not have it, or here"
    assert not STAYS & _OF_ANOTHER_MODEL.keys()


@pytest.mark.parametrize(
    ("is_of_run", "allowed", "expected"), [(True, False, True), (False, False, False), (False, True, True)]
)
def test_code_that_came_with_the_model_of_the_run_is_not_allowed_for_another(
    is_of_run: bool, allowed: bool, expected: bool
) -> None:
    policy = Namespace(init_args=Namespace(pretrained="start", trust_remote_code=True))
    experiment = Namespace(model=Namespace(init_args=Namespace(policy=policy)))
    use_model(experiment, EvaluatedModel(None, "other", is_of_run=is_of_run), remote_code=allowed)
    assert policy.init_args.trust_remote_code is expected
