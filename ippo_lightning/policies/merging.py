"""Add an adapter into the weights of its base, so that plain transformers can read the result."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel

from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import seeded
from ippo_lightning.policies.loading import transformers_model
from ippo_lightning.policies.quantized import dense_copy, is_quantized
from ippo_lightning.policies.reference import POLICY_ADAPTER, uninitialised
from ippo_lightning.policies.tying import adapters_on_tied_weights, text_configs, untie

logger = logging.getLogger(__name__)


def merged_copy(model: PeftModel) -> PreTrainedModel:
    """Return an ordinary model with the adapter added to the weights; the policy's model does not change.

    A 4-bit base is dequantised first. The adapter was trained on these weights, so the merged model computes what the
    policy computes; the original weights before quantisation would not. If the adapter changes one of two tied weights,
    the merged model has both, and its configuration ties them no more.

    Args:
        model: the adapter and its base.

    Raises:
        UserError: PEFT cannot merge this kind of adapter.
    """
    # a copy, because merging changes the model in place and cannot be undone exactly
    adapted = _on_dense_base(model) if is_quantized(model) else copy.deepcopy(model)
    # A merge into a weight with two owners would change both, and the policy has the adapter at one of them only.
    configs = text_configs(transformers_model(adapted))
    ties = [getattr(config, "tie_word_embeddings", None) for config in configs]
    untie(adapted, configs)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(adapter_names=[POLICY_ADAPTER])
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"saved model: the adapter cannot be merged; {reason}; use the adapter alone") from error
    _tie_again(merged, ties)
    return merged


def _on_dense_base(model: PeftModel) -> PeftModel:
    logger.info("The quantised base is dequantised to merge the adapter; the merged model is in %s", model.dtype)
    weights = get_peft_model_state_dict(model, adapter_name=POLICY_ADAPTER)
    dense = dense_copy(copy.deepcopy(model).unload())
    with seeded(0), adapters_on_tied_weights():  # seeded for random weights that are replaced in the next step
        adapted = get_peft_model(dense, uninitialised(model.peft_config[POLICY_ADAPTER]), adapter_name=POLICY_ADAPTER)
    assert isinstance(adapted, PeftModel)
    set_peft_model_state_dict(adapted, weights, adapter_name=POLICY_ADAPTER)
    return adapted


def _tie_again(merged: PreTrainedModel, ties: list[bool | None]) -> None:
    model: Any = merged
    first, second = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    same = first.shape == second.shape and torch.equal(first, second)
    for config, tied in zip(text_configs(merged), ties, strict=True):
        # If the weights differ, transformers would tie them when it loads the model, and lose one of them.
        if tied is not None:
            config.tie_word_embeddings = tied and same
    if any(ties) and not same:
        logger.warning(
            "The adapter changes the embedding or the head, which are one weight in its base; the merged model has both"
        )
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model.tie_weights()
