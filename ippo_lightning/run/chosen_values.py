"""What a run has chosen by itself where its settings leave the choice open: `auto`, and null for the usual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ippo_lightning.modules import TextModule
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.storage.run_folder import JsonObject
from ippo_lightning.tasks import callable_name

if TYPE_CHECKING:
    from ippo_lightning.run.iteration_loop import IterationLoop


def chosen_values(loop: IterationLoop) -> JsonObject:
    """Return the values that a run has chosen, by the dotted names of their settings.

    Args:
        loop: at the end of a run, because some values are known only after the first passes.
    """
    module, fabric = loop.module, loop.fabric
    chosen: dict[str, Any] = {
        "fabric.device": str(fabric.device),
        "fabric.world_size": fabric.world_size,
        "fabric.strategy": type(fabric.strategy).__name__,
        "fabric.precision": fabric.strategy.precision.precision,
        "model.max_tokens": module.pass_size.tokens,
    }
    if not isinstance(module, TextModule):
        return chosen
    if module.grader is not None:
        chosen["model.grader"] = callable_name(module.grader.grader)
    if module.evaluation_reward is not None:
        chosen["model.reward"] = callable_name(module.evaluation_reward.reward)
    # a subclass may have a policy of its own kind
    return {**chosen, **_of_policy(module.policy)} if isinstance(module.policy, CausalLMPolicy) else chosen


def _of_policy(policy: CausalLMPolicy) -> JsonObject:
    config = policy.language_model.config
    chosen: JsonObject = {
        "policy.reference": policy.reference_kind,
        "policy.attn_implementation": str(config._attn_implementation),
        "policy.context_length": policy.context_length,
        "policy.pad_token": str(policy.tokenizer.pad_token or policy.tokenizer.eos_token),
    }
    head = policy.value_head if policy.critic is None else policy.critic.head
    return chosen if head is None else {**chosen, "policy.value_init_std": head.init_std}
