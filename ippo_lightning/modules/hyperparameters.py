"""What a module was built with, as plain values in its checkpoints: `load_from_checkpoint` builds it again from them.

A description names only public classes and functions of this library. A checkpoint may come from anybody, so nothing
else is built from it: neither code of the user, which has to be given again, nor code that comes with a model.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from importlib import import_module
from types import FrameType
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CausalLMPolicy
from ippo_lightning.rewards import HeldGrader, HeldReward, RewardModel
from ippo_lightning.tasks import callable_name

_PACKAGE = "ippo_lightning"
_ROOMS = ("algorithms", "engine", "modules", "policies", "rewards", "tasks")
"""Rooms whose public names a description may contain."""
_PLAIN = (bool, int, float, str, type(None))
_UNKNOWN = "not_described"
_ATTENTION_OF_TORCH = (None, "eager", "sdpa", "flex_attention")


class _NotDescribableError(Exception):
    """An object that plain values do not describe; the message is its name."""


# --- describe --------------------------------------------------------------------------------------------


def described_arguments(module: object) -> dict[str, Any]:
    """Return the arguments of a module under construction as plain values, by name.

    Args:
        module: the caller is one of its constructors. What counts is the outermost one, which `cls(...)` called.

    Returns:
        Plain values; `{"class_path", "init_args"}` for an object; a mark for one that cannot be described.
    """
    given: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None:
        given = _arguments_of(frame, module) or given
        frame = frame.f_back
    return {name: _described_or_mark(value) for name, value in given.items()}


def _arguments_of(frame: FrameType, module: object) -> dict[str, Any] | None:
    if frame.f_code.co_name != "__init__":
        return None
    names, _, rest, values = inspect.getargvalues(frame)
    if not names or values.get(names[0]) is not module:
        return None
    return {**{name: values[name] for name in names[1:]}, **(values[rest] if rest else {})}


def _described_or_mark(value: Any) -> Any:
    try:
        return described(value)
    except _NotDescribableError as error:
        return {_UNKNOWN: str(error)}


def described(value: Any) -> Any:
    """Return a value as plain values.

    Raises:
        _NotDescribableError: it is, or contains, an object that the public names of this library do not describe.
    """
    if isinstance(value, _PLAIN):
        return value
    if type(value) in (list, tuple):
        return type(value)(described(item) for item in value)
    if isinstance(value, Mapping):
        # a mapping of the user's that looks like an object would be built as one
        if "class_path" in value or _UNKNOWN in value or not all(isinstance(name, str) for name in value):
            raise _NotDescribableError(callable_name(value))
        return {name: described(item) for name, item in value.items()}
    if isinstance(value, (HeldReward, HeldGrader)):
        return described(value.reward if isinstance(value, HeldReward) else value.grader)
    if inspect.isfunction(value):
        return {"class_path": _public_path(value)}
    return {"class_path": _public_path(type(value)), "init_args": _init_args(value)}


def _init_args(value: Any) -> dict[str, Any]:
    if isinstance(value, (CausalLMPolicy, RewardModel)):
        # a tokenizer is more than plain values; the checkpoint has its files
        return {name: described(None if _is_object(name, item) else item) for name, item in value.arguments.items()}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.init]
    else:
        names = list(inspect.signature(type(value)).parameters)
    if not all(hasattr(value, name) for name in names):
        raise _NotDescribableError(callable_name(value))
    return {name: described(getattr(value, name)) for name in names}


def _is_object(name: str, value: Any) -> bool:
    return name == "tokenizer" and not isinstance(value, str)


def _public_path(target: Any) -> str:
    for room in _ROOMS:
        module = import_module(f"{_PACKAGE}.{room}")
        name = getattr(target, "__name__", "")
        if name in module.__all__ and getattr(module, name) is target:
            return f"{_PACKAGE}.{room}.{name}"
    raise _NotDescribableError(callable_name(target))


# --- build again -----------------------------------------------------------------------------------------


def rebuilt_arguments(
    saved: Mapping[str, Any], *, given: Mapping[str, Any], tokenizer: object | None, call: str
) -> dict[str, Any]:
    """Return the arguments of a module from those that a checkpoint describes.

    Args:
        saved: what `described_arguments` returned.
        given: arguments of the user's, which take the place of saved ones.
        tokenizer: of the policy, if it was given as an object.
        call: as the user wrote it, for messages, such as `PPOModule.load_from_checkpoint`.

    Raises:
        UserError: an argument is not described, or names something that a checkpoint may not build.
    """
    found = dict(given)
    for name, value in saved.items():
        if name in given:
            continue
        if isinstance(value, Mapping) and _UNKNOWN in value:
            raise UserError(
                f"{name}: the checkpoint does not build {value[_UNKNOWN]!s:.80}, which is not of this library; "
                f"give it: {call}(path, {name}=...)"
            )
        own = {"tokenizer": tokenizer} if name == "policy" and tokenizer is not None else {}
        found[name] = _rebuilt(value, name, own)
    return found


def _rebuilt(value: Any, place: str, own: Mapping[str, Any] | None = None) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_rebuilt(item, place) for item in value)
    if not isinstance(value, Mapping):
        return value
    if "class_path" not in value:
        _check_code(value, place)
        return {name: _rebuilt(item, f"{place}.{name}") for name, item in value.items()}
    target = _public_target(value["class_path"], place)
    if not inspect.isclass(target):
        return target
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise UserError(f"{place}.init_args: the checkpoint has {arguments!r:.60}; expected arguments by name")
    _check_code(arguments, place)
    return target(**{name: _rebuilt(item, f"{place}.{name}") for name, item in arguments.items()} | dict(own or {}))


def _public_target(path: Any, place: str) -> Any:
    package, _, rest = str(path).partition(".")
    room, _, name = rest.partition(".")
    # only names that a room exports, so that no other module is imported
    if package == _PACKAGE and room in _ROOMS:
        module = import_module(f"{_PACKAGE}.{room}")
        target = getattr(module, name, None) if name in module.__all__ else None
        if inspect.isclass(target) or inspect.isfunction(target):
            return target
    raise UserError(f"{place}: the checkpoint names {path!r:.80}, which is no public class or function of this library")


def _check_code(arguments: Mapping[str, Any], place: str) -> None:
    """Refuse code that comes with a model, and kernels that are fetched and run."""
    for name, value in arguments.items():
        is_kernel = name == "attn_implementation" and value not in _ATTENTION_OF_TORCH
        if is_kernel or (name.endswith("trust_remote_code") and value not in (False, None)):
            raise UserError(
                f"{place}.{name}: the checkpoint wants {value!r:.60}, which runs code of others; to allow it, build "
                f"the object and give it: load_from_checkpoint(path, {place.partition('.')[0]}=...)"
            )
