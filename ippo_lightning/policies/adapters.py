"""What belongs to an adapter beside its weights: its tokenizer, resized embeddings, and the modules that it names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import seeded

_TOKENIZER = "tokenizer_config.json"
"""The file that every saved tokenizer has."""
_WEIGHTS, _OLD_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"


def tokenizer_of_adapter(folder: str | None) -> str | None:
    """Return the adapter's folder if it contains a tokenizer, else None.

    Args:
        folder: of a saved adapter, or None.
    """
    return folder if folder is not None and (Path(folder) / _TOKENIZER).is_file() else None


def fit_embedding(model: PreTrainedModel, folder: str) -> None:
    """Give the model as many embedding rows as the base had that an adapter was trained on.

    The new rows have random values; the adapter replaces them when it is loaded.

    Args:
        model: the base, changed in place.
        folder: of the saved adapter.

    Raises:
        UserError: the adapter was trained with more rows, and contains only changes of them.
    """
    shapes = dict(_embedding_shapes(model, folder))
    wanted = {rows for rows, _ in shapes.values()}
    rows = embedding_rows(model)
    if not wanted or wanted == {rows}:
        return
    # A low-rank change alone does not contain the rows that were added to the base.
    if not any(is_full for _, is_full in shapes.values()):
        raise UserError(
            f"policy.lora.adapter_path: {folder!r} changes an embedding of {max(wanted)} rows, the base has {rows}, "
            "and the folder lacks the added rows; give a base that was saved after it was resized"
        )
    with seeded(0):
        model.resize_token_embeddings(max(wanted), mean_resizing=False)


def embedding_rows(model: PreTrainedModel) -> int:
    """Return how many ids have an embedding.

    Args:
        model: a causal language model.
    """
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def check_target_modules(model: PreTrainedModel, names: Sequence[str] | str) -> None:
    """Refuse a name that matches no module: PEFT is content if one name of the list matches.

    Args:
        model: the base.
        names: a list of names; a text is "all-linear" or a regular expression, which PEFT checks itself.

    Raises:
        UserError: a name matches nothing; the message has the nearest name.
    """
    if isinstance(names, str):
        return
    modules = [path for path, _ in model.named_modules() if path]
    for name in names:
        if any(path == name or path.endswith(f".{name}") for path in modules):
            continue
        # As many parts of each path as the name has, so that `attn.q_prj` finds `attn.q_proj`.
        parts = name.count(".") + 1
        known = sorted({".".join(path.split(".")[-parts:]) for path in modules})
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise UserError(
            f"policy.lora.target_modules: {name!r} does not match any module of the model; did you mean {near[0]!r}?"
        )


def _embedding_shapes(model: PreTrainedModel, folder: str) -> Iterator[tuple[str, tuple[int, bool]]]:
    """Yield, by key, the rows that an adapter's tensor implies for an embedding, and whether it has them in full."""
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    places = [path for path, module in model.named_modules() if any(module is end for end in ends)]
    for key, shape in _shapes(Path(folder)):
        if len(shape) != 2 or not any(f".{path}." in f".{key}" for path in places):
            continue
        if "lora_embedding_A" in key:
            yield key, (shape[1], False)
        elif "lora_B" in key:  # of the head, whose outputs are the ids
            yield key, (shape[0], False)
        elif "lora_" not in key and key.endswith(".weight"):
            yield key, (shape[0], True)


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    if (folder / _WEIGHTS).is_file():
        with safe_open(str(folder / _WEIGHTS), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - the file is no mapping
                yield key, tuple(file.get_slice(key).get_shape())
    elif (folder / _OLD_WEIGHTS).is_file():
        for key, tensor in torch.load(folder / _OLD_WEIGHTS, map_location="cpu", weights_only=True).items():
            yield key, tuple(tensor.shape)
