"""A new model whose sizes contradict each other is found when it is built, and not in the middle of a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import evaluating, undisturbed
from ippo_lightning.policies.tokenizer_loading import one_line


def check_computes(model: PreTrainedModel, config: Mapping[str, Any]) -> None:
    """Refuse a new model that cannot read two tokens and continue them.

    Some sizes build a model and fail only in its first pass: minus one layer, an odd head. Which ones do depends on
    the architecture, so the model itself is asked, by one forward with a cache. It leaves no trace.

    Args:
        model: just built; one on the meta device has no numbers and is not asked.
        config: the user's fields, for the message.

    Raises:
        UserError: the forward fails, whatever the reason.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    # ids 0 and 1 exist in any vocabulary that has an end of a text
    ids = torch.tensor([[0, 1], [1, 0]], device=model.device)
    # not every architecture has a cache
    cached = {"use_cache": True} if "use_cache" in inspect.signature(model.forward).parameters else {}
    try:
        with torch.no_grad(), undisturbed(model), evaluating(model):
            model(input_ids=ids, **cached)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"policy.config: {dict(config)} builds a model that computes nothing; {one_line(error)}"
        ) from error
