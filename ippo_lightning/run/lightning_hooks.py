"""Lightning's hooks under `FabricLoop`: in which order they are called, and which callbacks are refused."""

from __future__ import annotations

import inspect
import io
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from lightning import Callback
from lightning.pytorch.callbacks import BaseFinetuning, Checkpoint, EarlyStopping, ModelCheckpoint

from ippo_lightning.distributed.collectives import is_lost_rank_error
from ippo_lightning.engine.hooks import hook_that_raised
from ippo_lightning.errors import UserError
from ippo_lightning.modules.evaluated import EvaluatedModule
from ippo_lightning.records.out_of_memory import is_out_of_memory
from ippo_lightning.run.trainer_attributes import MissingAttributeError

_BATCH = ("batch", "batch_idx")
HOOKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "setup": ("stage",),
        "on_load_checkpoint": ("checkpoint",),
        "on_fit_start": (),
        "on_sanity_check_start": (),
        "on_sanity_check_end": (),
        "on_train_start": (),
        "on_train_epoch_start": (),
        "on_train_batch_start": _BATCH,
        "on_rollout_start": ("plan",),
        "on_rollout_end": ("plan",),
        "on_minibatch_start": ("plan",),
        "on_before_backward": ("loss",),
        "on_after_backward": (),
        "on_before_optimizer_step": ("optimizer",),
        "on_before_zero_grad": ("optimizer",),
        "on_update_end": ("stats",),
        "on_train_batch_end": ("outputs", *_BATCH),
        "on_validation_start": (),
        "on_validation_epoch_start": (),
        "on_validation_batch_start": _BATCH,
        "on_validation_batch_end": ("outputs", *_BATCH),
        "on_validation_epoch_end": (),
        "on_validation_end": (),
        "on_train_epoch_end": (),
        "on_save_checkpoint": ("checkpoint",),
        "on_train_end": (),
        "on_test_start": (),
        "on_test_epoch_start": (),
        "on_test_batch_start": _BATCH,
        "on_test_batch_end": ("outputs", *_BATCH),
        "on_test_epoch_end": (),
        "on_test_end": (),
        "on_fit_end": (),
        "on_exception": ("exception",),
        "teardown": ("stage",),
    }
)
"""Every hook that this loop calls, with what it gets after the trainer and the module; in the order of a run."""


def in_lightnings_order(callbacks: Sequence[Any]) -> list[Any]:
    """Return the callbacks with those that write checkpoints last, so that their files contain what the others did."""
    return sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))


def call_lightning_hook(
    callbacks: Sequence[Any], name: str, trainer: object, module: EvaluatedModule, *arguments: object
) -> None:
    """Call a hook of each callback and then that of a user's own module, in Lightning's order.

    Args:
        callbacks: Lightning's, or any objects; a hook that one lacks is left out.
        name: one of `HOOKS`.
        trainer: the loop.
        module: gets the hook without trainer and module, as under `lightning.Trainer`.
        arguments: see `HOOKS`.

    Raises:
        UserError: a callback raised; errors of memory, disk and numbers pass unchanged.
    """
    # At the end of an epoch what a callback or the module logs can still be monitored.
    waiting = (EarlyStopping, Checkpoint) if name == "on_train_epoch_end" else ()
    _call_each([item for item in callbacks if not isinstance(item, waiting)], name, trainer, module, *arguments)
    if (own := _own_hook(module, name)) is not None and own(*arguments) == -1:
        raise UserError(f"model: {type(module).__name__}.{name} returned -1, which skips no epoch under FabricLoop")
    _call_each([item for item in callbacks if isinstance(item, waiting)], name, trainer, module, *arguments)


def _call_each(callbacks: Sequence[Any], name: str, *arguments: object) -> None:
    for callback in callbacks:
        hook = getattr(callback, name, None)
        if callable(hook):
            with errors_named(f"{type(callback).__name__}.{name}"):
                hook(*arguments)


def _own_hook(module: EvaluatedModule, name: str) -> Callable[..., object] | None:
    """Return the hook of a user's subclass; those of this library's modules are for `lightning.Trainer` alone."""
    library = _library_class(type(module))  # type: ignore[arg-type]  # a class can be hashed
    own = getattr(type(module), name, None)
    return None if own is getattr(library, name, None) else getattr(module, name)


@cache
def _library_class(kind: type) -> type:
    """Return the nearest class of this library among the bases of a class, or the class itself."""
    return next(base for base in kind.__mro__ if base.__module__.startswith("ippo_lightning."))


@contextmanager
def errors_named(where: str | None = None) -> Iterator[None]:
    """Make one line of what a user's callback raises; errors of memory, disk and numbers pass unchanged.

    Args:
        where: callback and method. None if the block calls hooks of the engine, which says it of each error, and other
            code, whose errors pass.

    Raises:
        UserError: names the callback and the method.
    """
    try:
        yield
    except Exception as error:
        where = where or hook_that_raised(error)
        named = None if where is None else _named(error, where)
        if named is None:
            raise
        raise named from error


def _named(error: Exception, where: str) -> UserError | None:
    """Return one line for an error of the user's code, which may raise anything; None if it has to pass unchanged."""
    if isinstance(error, MissingAttributeError):
        return UserError(f"{error} (in {where})")
    # The command line knows what to do with these, and with every error of this library.
    if isinstance(error, (OSError, MemoryError, FloatingPointError)) or is_out_of_memory(error):
        return None
    if is_lost_rank_error(error) or type(error).__module__.startswith("ippo_lightning."):
        return None
    message = " ".join(str(error).split())[:400]
    return UserError(f"callbacks: {where} raised {type(error).__name__}: {message}")


# --- before the first iteration ---------------------------------------------------------------------------


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Refuse callbacks with a hook that this loop does not call, or cannot call as it is written.

    Args:
        callbacks: of the run.

    Raises:
        UserError: names the callback and the hook.
    """
    for callback in callbacks:
        if isinstance(callback, type):
            raise UserError(f"callbacks: {callback.__name__} is a class; expected an object, {callback.__name__}(...)")
        if isinstance(callback, BaseFinetuning):
            raise UserError(
                f"callbacks: {type(callback).__name__} changes during the run which parameters train, and a checkpoint "
                "contains one choice; freeze in `setup`, or begin a second run from the exported model"
            )
        _check_overridden(callback)
        for name, arguments in HOOKS.items():
            if callable(hook := getattr(callback, name, None)):
                _check_arguments(callback, name, hook, arguments)


def _check_overridden(callback: object) -> None:
    kind, own = type(callback), vars(callback) if hasattr(callback, "__dict__") else {}
    found = {**{name: getattr(kind, name) for name in dir(kind)}, **own}  # LambdaCallback has its hooks in the object
    overridden = {name for name, value in found.items() if value is not getattr(Callback, name, None)}
    hooks = {name for name in overridden if name in HOOKS or (name.startswith("on_") and callable(found[name]))}
    never = sorted(name for name in hooks if name not in HOOKS)
    # Hooks of `Trainer.predict` belong to no `fit`, here or there.
    unknown = [name for name in never if "predict" not in name]
    if any(hasattr(Callback, name) for name in unknown) or (never and not hooks & HOOKS.keys()):
        raise UserError(
            f"callbacks: {kind.__name__} overrides {', '.join(never)}, which `ippo fit` never calls; "
            "docs/guides/callbacks.md lists the hooks that it calls"
        )
    if unknown:
        warnings.warn(
            f"callbacks: {kind.__name__}.{unknown[0]} is no hook of this loop; it is not called", stacklevel=2
        )


def _check_arguments(callback: object, name: str, hook: Callable[..., object], arguments: Sequence[str]) -> None:
    given = ("trainer", "pl_module", *arguments)
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # a hook in C tells nothing
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        raise UserError(
            f"callbacks: {type(callback).__name__}.{name} takes ({', '.join(signature.parameters)}); "
            f"expected ({', '.join(given)})"
        ) from error


def check_states(callbacks: Sequence[Any]) -> None:
    """Refuse callbacks whose state a checkpoint would not give back.

    Args:
        callbacks: after their `setup`, which may make the state.

    Raises:
        UserError: names the callback.
    """
    for callback in callbacks:
        name = type(callback).__name__
        saves, loads = (callable(getattr(callback, method, None)) for method in ("state_dict", "load_state_dict"))
        with errors_named(f"{name}.state_dict"):
            state = callback.state_dict() if saves else {}
        if (state and not loads) or (loads and not saves):
            raise UserError(f"callbacks: {name} has one of state_dict and load_state_dict; expected both, or neither")
        check_plain(state, f"callbacks: {name}.state_dict() returned")


def check_plain(content: object, what: str) -> None:
    """Refuse what a checkpoint could contain and not give back: it is read without running code.

    Args:
        content: for a checkpoint. Tensors in dictionaries and lists are not copied.
        what: begins the message.

    Raises:
        UserError: `content` has an object that is neither a tensor nor a plain value.
    """
    file = io.BytesIO()
    try:
        torch.save(_without_tensors(content), file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{what} what a checkpoint cannot contain; expected tensors, numbers, texts, lists and dictionaries"
        ) from error


def _without_tensors(content: object) -> object:
    if isinstance(content, torch.Tensor):
        return None
    if type(content) is dict:
        return {key: _without_tensors(value) for key, value in content.items()}
    return [_without_tensors(value) for value in content] if type(content) in (list, tuple) else content  # type: ignore[attr-defined]


def check_checkpoint_writers(callbacks: Sequence[Any], own_folder: os.PathLike[str]) -> None:
    """Refuse a `ModelCheckpoint` that would never write, or that would write over the run's own checkpoints.

    Args:
        callbacks: after their `setup`.
        own_folder: the run's own checkpoints.

    Raises:
        UserError: names the argument.
    """
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        # Lightning reads the interval under automatic optimisation only.
        if callback._train_time_interval is not None:
            raise UserError(
                "callbacks: ModelCheckpoint.train_time_interval has no effect under manual optimisation, which these "
                "modules use; set every_n_train_steps"
            )
        is_own = callback.dirpath is not None and os.path.realpath(callback.dirpath) == os.path.realpath(own_folder)
        if callback.save_last and is_own:
            raise UserError(
                f"callbacks: ModelCheckpoint.save_last would replace last.ckpt of the run in {callback.dirpath}; set "
                "its dirpath to another folder"
            )
