"""Load a reward model and its tokenizer; every failure becomes an error of one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ippo_lightning.errors import UserError
from ippo_lightning.storage.attention_choice import config_without_kernel

if TYPE_CHECKING:
    from ippo_lightning.storage.quantized_loading import Quantization

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("nf4", "fp4", "int8")


def load_tokenizer(pretrained: str, *, trust_remote_code: bool) -> Any:
    """Return the tokenizer that was saved with a reward model.

    Args:
        pretrained: folder or Hub id.
        trust_remote_code: run code that comes with the tokenizer.

    Raises:
        UserError: there is none, or no such model.
    """
    # imported here because it takes seconds, and most rewards need none
    from transformers import AutoTokenizer

    from ippo_lightning.storage.model_names import require_folder

    require_folder(pretrained, field="reward.pretrained")
    try:
        return AutoTokenizer.from_pretrained(pretrained, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"reward.pretrained: no tokenizer in {pretrained!r}; {_one_line(error)}") from error


def load_classifier(
    pretrained: str,
    *,
    dtype: torch.dtype,
    quantization: Quantization | None,
    device: torch.device | None,
    trust_remote_code: bool,
) -> Any:
    """Return a sequence classifier in eval mode, whose weights ask for no gradient.

    Args:
        pretrained: folder or Hub id.
        dtype: of the weights.
        quantization: one of `QUANTIZATIONS`, or None.
        device: for quantised weights; None for this process's GPU, or the CPU if there is none.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: the model cannot be loaded, its file has no head, or its configuration chooses a kernel for attention
            that is fetched and run.
    """
    from transformers import AutoModelForSequenceClassification

    config_without_kernel(
        pretrained,
        chosen=None,
        trust_remote_code=trust_remote_code,
        field="reward.pretrained",
        remedy="remove NAME from its config.json",
    )
    settings: dict[str, Any] = {"dtype": dtype}
    if quantization is not None:
        from ippo_lightning.storage.quantized_loading import pin_layers, quantization_config, quantization_device

        settings["quantization_config"] = quantization_config(
            quantization, double_quantization=True, compute_dtype=dtype
        )
        settings["device_map"] = quantization_device() if device is None else {"": str(device)}
    try:
        # A model without a head would draw one, from the stream of the run's random numbers.
        with torch.random.fork_rng(devices=[]):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                pretrained, output_loading_info=True, trust_remote_code=trust_remote_code, **settings
            )
    except Exception as error:
        raise UserError(f"reward.pretrained: cannot load {pretrained!r}; {_one_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"reward.pretrained: {pretrained!r} lacks {missing[0]}; expected a trained sequence classifier, and its "
            "head would be random"
        )
    if quantization is not None:
        pin_layers(model)
    return model.eval().requires_grad_(False)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
