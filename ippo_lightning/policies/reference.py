"""The frozen reference of the KL penalty: a copy, the base without its adapter, or a second adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import evaluating, keeping_trainable_flags, seeded, undisturbed
from ippo_lightning.policies.settings import LoraSettings

ReferenceKind = Literal["auto", "none", "copy", "adapter_off", "adapter_copy"]

POLICY_ADAPTER = "default"
REFERENCE_ADAPTER = "reference"


def resolve_reference(kind: ReferenceKind, lora: LoraSettings | None) -> ReferenceKind:
    """Choose the kind of reference and refuse one that would not be the starting policy.

    Args:
        kind: the user's choice; "auto" is a copy for full fine-tuning, the base without the adapter for a new adapter,
            and a second adapter if a saved adapter is continued. `settle_reference` takes a copy instead if that is not
            possible.
        lora: the adapter settings, if any.

    Returns:
        Any kind but "auto".

    Raises:
        UserError: the kind needs an adapter and there is none; or a continued adapter would be switched off, and the
            reference would then be the base model instead of the starting policy.
    """
    if kind == "auto":
        if lora is None:
            return "copy"
        # A new adapter starts at B = 0, so the base without it is exactly the starting policy, at no cost in memory.
        return "adapter_off" if lora.adapter_path is None else "adapter_copy"
    if kind not in ("none", "copy", "adapter_off", "adapter_copy"):
        raise UserError(f"policy.reference: {kind!r} is unknown; use auto, none, copy, adapter_off or adapter_copy")
    if kind.startswith("adapter_") and lora is None:
        raise UserError(f"policy.reference: {kind!r} needs an adapter; add lora or use copy")
    if kind == "adapter_off" and lora is not None and lora.adapter_path is not None:
        raise UserError(
            f"policy.reference: 'adapter_off' would be the base model, not the adapter in {lora.adapter_path!r}; "
            "use adapter_copy"
        )
    return kind


def prepare_reference(kind: ReferenceKind, model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel | None:
    """Fix the reference at the policy's present weights.

    Args:
        kind: any but "auto".
        model: the policy's network before any update; "adapter_copy" adds a frozen adapter to it.

    Returns:
        A second network for "copy", else None.

    Raises:
        UserError: the library cannot copy this network or this adapter.
    """
    try:
        if kind == "adapter_copy":
            assert isinstance(model, PeftModel)
            add_reference_adapter(model)
        return frozen_copy(model) if kind == "copy" else None
    except (RuntimeError, ValueError) as error:
        # some adapters exist only once in a model, and some cannot be copied with it
        other = {"adapter_copy": "copy", "copy": "adapter_copy" if isinstance(model, PeftModel) else "none"}[kind]
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"policy.reference: {kind!r} is not possible; {reason}; use {other}") from error


def settle_reference(
    wanted: ReferenceKind,
    kind: ReferenceKind,
    model: PreTrainedModel | PeftModel,
    forward: Callable[[], Tensor] | None,
) -> tuple[ReferenceKind, PreTrainedModel | PeftModel | None]:
    """Fix the reference at the policy's present weights; "auto" takes a copy where its first choice would not stay.

    A reference stays as it is if no trainable parameter takes part in it. An adapter may train more than itself, for
    example the biases of its base, which stay in the model when the adapter is off.

    Args:
        wanted: the user's choice.
        kind: what `resolve_reference` made of it.
        model: the policy's network before any update.
        forward: runs the model, with a graph; None to leave the check out.

    Returns:
        The kind, and a second network for "copy".

    Raises:
        UserError: the user's choice is not possible or would change with the policy.
    """
    try:
        twin = prepare_reference(kind, model)
    except UserError:
        if wanted != "auto" or kind == "copy":
            raise
        return "copy", prepare_reference("copy", model)
    moving = None if forward is None or kind in ("none", "copy") else _trained_part(kind, model, forward)
    if moving is None:
        return kind, twin
    if wanted != "auto":
        raise UserError(f"policy.reference: {kind!r} would change in training, because {moving} trains; use copy")
    if kind == "adapter_copy":
        assert isinstance(model, PeftModel)
        with keeping_trainable_flags(model):
            model.delete_adapter(REFERENCE_ADAPTER)
    return "copy", prepare_reference("copy", model)


def _trained_part(kind: ReferenceKind, model: PreTrainedModel | PeftModel, forward: Callable[[], Tensor]) -> str | None:
    """Return the name of a trainable parameter that the reference depends on, None if there is none."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with undisturbed(model), evaluating(model), keeping_trainable_flags(model), reference_active(kind, model):
        # PEFT switches flags off together with an adapter.
        for parameter in trained.values():
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                output = forward()
        except Exception:  # of any foreign code; `check_policy` reports a model that does not run
            return None
        if not output.requires_grad:
            return None
        found = torch.autograd.grad(output.sum(), list(trained.values()), allow_unused=True)
    return next((name for name, gradient in zip(trained, found, strict=True) if gradient is not None), None)


def reference_active(kind: ReferenceKind, model: PreTrainedModel | PeftModel) -> AbstractContextManager[None]:
    """Return the context in which `model` computes as the reference; a copy needs no context.

    Args:
        kind: any but "auto".
        model: the policy's network.

    Raises:
        UserError: the kind is "none".
    """
    if kind == "none":
        raise UserError("policy.reference: 'none' gives no log-probabilities; use auto")
    if kind == "copy":  # a network of its own, which the policy's state does not affect
        return nullcontext()
    assert isinstance(model, PeftModel)
    return adapter_disabled(model) if kind == "adapter_off" else reference_adapter_active(model)


def frozen_copy(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Return a deep copy in evaluation mode whose parameters never train.

    Args:
        model: the policy's network before any update.
    """
    twin = copy.deepcopy(model)
    # A copy keeps the flags, and the reference would take part in the optimizer.
    twin.requires_grad_(False)
    twin.eval()
    return twin


def add_reference_adapter(model: PeftModel) -> None:
    """Add a second adapter with the weights of the policy's adapter, frozen and inactive.

    Args:
        model: changed in place; the policy's adapter stays active.
    """
    # PEFT's add_adapter and set_adapter switch requires_grad of all adapters, hence the flags are restored.
    weights = get_peft_model_state_dict(model, adapter_name=POLICY_ADAPTER)
    with keeping_trainable_flags(model):
        with seeded(0):  # for random weights that are replaced in the next step
            model.add_adapter(REFERENCE_ADAPTER, uninitialised(model.peft_config[POLICY_ADAPTER]))
        set_peft_model_state_dict(model, weights, adapter_name=REFERENCE_ADAPTER)
        model.set_adapter(POLICY_ADAPTER)
    for name, parameter in model.named_parameters():
        if REFERENCE_ADAPTER in name.split("."):
            parameter.requires_grad_(False)


def uninitialised(config: PeftConfig) -> PeftConfig:
    """Return the settings of an adapter whose weights are loaded afterwards, and which leaves the base alone.

    Some initialisations (PiSSA, OLoRA, LoftQ) subtract the new adapter from the base. A second adapter with the same
    settings would change the base again, and with it the first adapter's model.

    Args:
        config: of the adapter whose weights are loaded.
    """
    settings = copy.deepcopy(config)
    for name in vars(settings):
        # each kind of adapter has a name of its own: init_lora_weights, init_ia3_weights, init_weights
        if name.startswith("init_") and name.endswith("weights"):
            setattr(settings, name, False)
    return settings


@contextmanager
def reference_adapter_active(model: PeftModel) -> Iterator[None]:
    """Activate the reference adapter for the block, and the policy's adapter afterwards, also after an error.

    Args:
        model: prepared by `add_reference_adapter`.
    """
    with keeping_trainable_flags(model):
        try:
            # PEFT makes the parameters of the adapter that it activates trainable; the flags outside restore them.
            model.set_adapter(REFERENCE_ADAPTER)
            yield
        finally:
            model.set_adapter(POLICY_ADAPTER)


@contextmanager
def adapter_disabled(model: PeftModel) -> Iterator[None]:
    """Switch the adapter off for the block, and on afterwards, also after an error.

    Args:
        model: a model with one adapter.
    """
    # PEFT switches requires_grad together with the adapter; a parameter that the user froze would train afterwards.
    with keeping_trainable_flags(model), model.disable_adapter():
        yield
