"""Write a policy so that plain transformers and PEFT can read it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo_lightning.distributed.collectives import rank
from ippo_lightning.distributed.dtensor import full_on_rank_zero, sharded_like
from ippo_lightning.distributed.lockstep import gathered
from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import seeded
from ippo_lightning.policies.loading import transformers_model
from ippo_lightning.policies.merging import merged_copy
from ippo_lightning.policies.quantized import QUANTIZED_LAYERS, dequantized_weight, is_quantized
from ippo_lightning.policies.reference import POLICY_ADAPTER, uninitialised
from ippo_lightning.policies.tying import adapters_on_tied_weights


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
) -> dict[str, Path]:
    """Save the model and the tokenizer; an adapter is saved alone and merged into its base.

    Args:
        model: the policy's network; it does not change.
        tokenizer: saved next to every model.
        folder: created if missing. A model without adapter goes directly into it, an adapter into `adapter` and the
            merged model into `merged`.

    Returns:
        Folders by name: "model", or "adapter" and "merged".
    """
    folder = Path(folder)
    if not isinstance(model, PeftModel):
        return {"model": _save(model, tokenizer, folder)}
    adapter_folder = save_adapter(model, tokenizer, folder / "adapter")
    merged_folder = _save(merged_copy(model), tokenizer, folder / "merged")
    return {"adapter": adapter_folder, "merged": merged_folder}


def full_copy(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel | None:
    """Return on rank 0 an ordinary copy of a sharded model, on the CPU; None on other ranks.

    Args:
        model: sharded; every rank must call this. The copy's weights are dequantised if the model's are 4-bit.
    """
    # The gathering below is collective, so every rank takes part before all but rank 0 return.
    state = full_on_rank_zero({name: tensor.detach() for name, tensor in model.state_dict().items()})
    network = transformers_model(model)
    config = copy.deepcopy(network.config)
    if is_quantized(model):
        with gathered(model):
            state |= {
                f"{name}.weight": dequantized_weight(layer).to(dtype=network.dtype).cpu()
                for name, layer in model.named_modules()
                if isinstance(layer, QUANTIZED_LAYERS) and rank() == 0
            }
        del config.quantization_config  # with it, transformers would load the dense copy as a quantised model
    if rank() != 0:
        return None
    with seeded(0), adapters_on_tied_weights():  # seeded for random weights that are replaced below
        copied: Any = type(network)(config)
        copied.to(dtype=network.dtype)
        if isinstance(model, PeftModel):
            copied = get_peft_model(
                copied, uninitialised(model.peft_config[POLICY_ADAPTER]), adapter_name=POLICY_ADAPTER
            )
    # assign=True takes over the dtype of each tensor: an adapter stays float32 on a half-precision base.
    copied.load_state_dict({name: state[name] for name in copied.state_dict()}, assign=True)
    transformers_model(copied).generation_config = copy.deepcopy(network.generation_config)
    ordinary: PreTrainedModel | PeftModel = copied
    return ordinary


def save_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save the trained adapter alone, in PEFT's format, and the tokenizer; return the folder.

    Args:
        model: the policy's network.
        tokenizer: saved next to the adapter.
        folder: created if missing.
    """
    # without the selection, PEFT would save the reference's adapter as well
    model.save_pretrained(str(folder), selected_adapters=[POLICY_ADAPTER])
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def copy_parameters(parameters: dict[str, nn.Parameter], state: dict[str, Tensor]) -> None:
    """Copy saved tensors into parameters of the same names.

    Args:
        parameters: changed in place.
        state: as many tensors of the same names and shapes.

    Raises:
        UserError: names or shapes differ; nothing is copied then.
    """
    # All checks come before the first copy, so that an error leaves no half-loaded policy.
    different = sorted(parameters.keys() ^ state.keys())
    if different:
        raise UserError(f"policy state: {len(different)} names differ, for example {different[0]}; use equal settings")
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            found, expected = tuple(state[name].shape), tuple(parameter.shape)
            raise UserError(f"policy state: {name} has shape {found}, expected {expected}; use equal settings")
    for name, parameter in parameters.items():
        parameter.copy_(sharded_like(state[name], parameter))


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
