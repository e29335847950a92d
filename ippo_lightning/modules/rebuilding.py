"""Modules that `load_from_checkpoint` builds again without arguments, through Lightning's own hyperparameters."""

from __future__ import annotations

import difflib
import inspect
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.utilities.cloud_io import _load
from torch import Tensor
from transformers import AutoTokenizer

from ippo_lightning.errors import UserError
from ippo_lightning.modules.hyperparameters import described_arguments, rebuilt_arguments
from ippo_lightning.modules.loading_errors import one_line_for
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.policies.quantized import restore_quantized

CHECKPOINT_KEY = "ippo_lightning"
"""Of what the modules add to a checkpoint of `lightning.Trainer`."""
_TOKENIZER = "tokenizer"
_HYPERPARAMETERS = LightningModule.CHECKPOINT_HYPER_PARAMS_KEY
_OF_EARLIER_LIGHTNING = ("hparams", "module_arguments")
_MOST_FILES = 32


class RebuildableModule(LightningModule):
    """A module whose checkpoints describe what it was built with."""

    def __init__(self) -> None:
        super().__init__()
        # Plain values and no objects: a policy in the hyperparameters would be in each checkpoint twice.
        self.save_hyperparameters(described_arguments(self))

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **arguments: Any,
    ) -> Any:
        """Return the module of a checkpoint of `lightning.Trainer`; what it was built with is built again.

        Args:
            checkpoint_path: file, URL or open file.
            map_location: of the tensors; see `torch.load`.
            hparams_file: a YAML or CSV in place of the checkpoint's hyperparameters; see Lightning.
            strict: whether the names of all tensors must be the module's.
            weights_only: None for true: the file then contains tensors and plain values only.
            arguments: of the constructor, in place of those that the checkpoint describes. Code of your own, for
                example a reward, is never built from a checkpoint, and so is given here.

        Raises:
            UserError: the constructor has no such argument; the checkpoint cannot be read, is damaged or of something
                else, does not describe an argument, or names code outside this library; or this machine has no such
                `map_location`. What your own code raises, a constructor or a hook of a subclass for example, passes
                unchanged.
        """
        with one_line_for(checkpoint_path, kind=cls, map_location=map_location):
            _check_names(cls, arguments)
            if hparams_file is None:
                arguments = _arguments(cls, checkpoint_path, arguments)
            # older versions of Lightning have no such option
            if "weights_only" in inspect.signature(super().load_from_checkpoint).parameters:
                arguments["weights_only"] = weights_only is None or weights_only
            return super().load_from_checkpoint(checkpoint_path, map_location, hparams_file, strict, **arguments)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the files of a tokenizer that was given as an object."""
        policy = getattr(self, "policy", None)
        if isinstance(policy, CausalLMPolicy) and not isinstance(policy.arguments["tokenizer"], (str, type(None))):
            checkpoint.setdefault(CHECKPOINT_KEY, {})[_TOKENIZER] = _tokenizer_files(policy.arguments["tokenizer"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put quantised weights back, whose scales torch itself does not load."""
        restore_quantized(self, checkpoint.get("state_dict", {}))


def _arguments(cls: type, source: Any, given: dict[str, Any]) -> dict[str, Any]:
    checkpoint = _read(source)
    if "parameters" in checkpoint and "state_dict" not in checkpoint:
        raise UserError(
            f"checkpoint: {source} is of a run of `ippo fit`; load its model with transformers from the folder "
            "`model` of the run, or write it with `ippo export`"
        )
    saved = checkpoint.get(_HYPERPARAMETERS)
    stated = [saved, *(checkpoint.get(name) for name in _OF_EARLIER_LIGHTNING)]
    if any(isinstance(part, Mapping) and "_instantiator" in part for part in stated):
        raise UserError(f"checkpoint: {source} names a function that would build the module; {_GIVE_ALL}")
    if not isinstance(saved, Mapping):
        if "policy" not in given:
            raise UserError(f"checkpoint: {source} does not describe the module that it is of; {_GIVE_ALL}")
        return given
    added = checkpoint.get(CHECKPOINT_KEY, {})
    if not isinstance(added, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError(
            f"checkpoint: {source} lacks state_dict, or {CHECKPOINT_KEY} in it is no mapping; expected a checkpoint of "
            "Trainer"
        )
    files = added.get(_TOKENIZER)
    tokenizer = None if files is None or "policy" in given else _tokenizer_of(files, source)
    return rebuilt_arguments(saved, given=given, tokenizer=tokenizer, call=f"{cls.__name__}.load_from_checkpoint")


def _check_names(cls: type, given: Mapping[str, Any]) -> None:
    """Refuse an argument that the constructor does not have: Lightning would leave it out without a word.

    Raises:
        UserError: the constructor has no such argument.
    """
    parameters = inspect.signature(cls).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return
    known = [one.name for one in parameters]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise UserError(f"{name}: {cls.__name__} has no such argument; {remedy}")


_GIVE_ALL = "give its arguments, at least policy=..."


def _read(source: Any) -> dict[str, Any]:
    try:
        if isinstance(source, (str, Path)) and Path(source).is_file():
            # mapped: only the description is read here, and Lightning reads the tensors after this
            found = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        else:
            found = _load(source, map_location="cpu", weights_only=True)
            if hasattr(source, "seek"):
                source.seek(0)
    except pickle.UnpicklingError as error:
        raise UserError(f"checkpoint: {source} contains more than tensors and plain values; {_GIVE_ALL}") from error
    if not isinstance(found, dict):
        raise UserError(f"checkpoint: {source} contains {type(found).__name__}; expected a checkpoint of Trainer")
    return found


def _tokenizer_files(tokenizer: Any) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        paths = [path for path in sorted(Path(folder).iterdir()) if path.is_file()]
        # as tensors, because a vocabulary may be of any bytes
        return {path.name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths}


def _tokenizer_of(files: Any, source: Any) -> Any:
    is_valid = isinstance(files, Mapping) and len(files) <= _MOST_FILES
    # a name with a folder in it could write anywhere
    if not is_valid or not all(_is_file_name(name) and isinstance(files[name], Tensor) for name in files):
        raise UserError(f"checkpoint: {source} has no readable tokenizer; give policy=...")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content.to(torch.uint8).cpu().numpy().tobytes())
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and "\\" not in name
