"""Whether loading a saved adapter has changed the base below it, as PiSSA, OLoRA and LoftQ do."""

from __future__ import annotations

from peft import PeftModel
from torch import nn

_CHANGED = "adapter_changed_base"


def weight_versions(model: nn.Module) -> set[tuple[int, int]]:
    """Return address and version of every weight; they identify contents without a read.

    Args:
        model: any module.
    """
    return {(parameter.data_ptr(), parameter._version) for parameter in model.parameters()}


def noting_base_change(model: PeftModel, before: set[tuple[int, int]]) -> PeftModel:
    """Return the model, marked if a weight of its base is not what it was.

    Args:
        model: with an adapter that was just loaded.
        before: of the base alone, from `weight_versions`.
    """
    # An adapter renames the weights of the base and adds its own, so only what is gone counts.
    setattr(model, _CHANGED, not before <= weight_versions(model))
    return model


def has_changed_base(model: nn.Module) -> bool:
    """Return whether `noting_base_change` has marked the model.

    Args:
        model: any module.
    """
    return bool(getattr(model, _CHANGED, False))
