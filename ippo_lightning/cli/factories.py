"""Functions under `class_path`: one that promises what its field expects builds an object, any other is not called."""

from __future__ import annotations

import collections.abc
import inspect
import pydoc
import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from ippo_lightning.errors import UserError

_PLAIN = (typing.Any, object, type(None), str, int, float, bool, dict, list)


def check_factories(settings: Any) -> None:
    """Refuse to call a function that does not state by its annotation that it returns what the field expects.

    The parser itself checks classes, and functions where a class is expected. Where a function is expected, such as a
    reward, it would call any function that stands under `class_path` to see what comes out.

    Args:
        settings: parsed, not yet built.

    Raises:
        UserError: a function under `class_path` is no factory of what its field expects.
    """
    for section, value in _items(settings):
        # the sections themselves are classes, which the parser has checked
        for item in value if isinstance(value, list) else [value]:
            _check_value(item, None, section)


def _check_value(value: Any, hint: Any, field: str) -> None:
    if isinstance(value, list):
        for item in value:
            _check_value(item, hint, field)
        return
    if not _has_items(value):
        return
    path = value.get("class_path")
    if not isinstance(path, str):
        _check_entries(value, hint, field)
        return
    if hint is not None and not any(_builds(leaf) for leaf in _leaves(hint)):
        return  # where any value fits, this is data, and nothing is built of it
    target = _resolved(path)
    if target is not None and not inspect.isclass(target):
        _check_function(target, path, hint, field)
    _check_arguments(value.get("init_args"), _hints(target), field)


def _check_entries(value: Any, hint: Any, field: str) -> None:
    """Check the fields of settings, or the entries of a plain mapping."""
    leaves = [] if hint is None else list(_leaves(hint))
    settings = next((leaf for leaf in leaves if inspect.isclass(leaf) and is_dataclass(leaf)), None)
    if settings is not None:
        _check_arguments(value, _hints(settings), field)
        return
    for name, entry in _items(value):
        _check_value(entry, hint, f"{field}.{name}")


def _check_arguments(given: Any, hints: Mapping[str, Any], field: str) -> None:
    for name, argument in _items(given):
        # of an argument that no signature names, nothing is known: it may take a function
        _check_value(argument, hints.get(name, collections.abc.Callable), f"{field}.{name}")


def _check_function(function: Any, path: str, hint: Any, field: str) -> None:
    returned = _hints(function).get("return")
    takes_callable = hint is not None and any(_is_callable_type(leaf) for leaf in _leaves(hint))
    # a class whose instances can be called, or an annotation such as Callable[..., float]
    if inspect.isclass(returned) and (not takes_callable or any("__call__" in vars(base) for base in returned.__mro__)):
        return
    if _is_callable_type(returned):
        return
    raise UserError(
        f"{field}: {path} is a function, and a class_path names a class; name the function itself as {field}: {path}, "
        "or annotate what it returns"
    )


def _hints(target: Any) -> Mapping[str, Any]:
    """Return the annotations of a class's constructor, or of a function, by name; none if they cannot be resolved."""
    if target is None:
        return {}
    function = target
    if inspect.isclass(target) and not is_dataclass(target):
        function = target.__init__
    try:
        return typing.get_type_hints(function)
    except Exception:  # an annotation is code of any kind: a name that exists for a type checker only, for example
        return {}


def _resolved(path: str) -> Any:
    try:
        return pydoc.locate(path)
    except Exception:  # the parser has reported what is wrong, or leaves the value as data
        return None


def _leaves(hint: Any) -> Iterator[Any]:
    """Yield the alternatives of a type, of the entries of a list or mapping too."""
    origin = typing.get_origin(hint)
    if origin is None or _is_callable_type(hint) or origin is typing.Literal:
        yield hint
        return
    for argument in typing.get_args(hint):
        yield from _leaves(argument)


def _is_callable_type(hint: Any) -> bool:
    return collections.abc.Callable in (hint, typing.get_origin(hint)) or hint is typing.Callable


def _builds(leaf: Any) -> bool:
    """Return whether the parser builds an object for this type."""
    return _is_callable_type(leaf) or (inspect.isclass(leaf) and leaf not in _PLAIN)


def _has_items(value: Any) -> bool:
    from jsonargparse import Namespace

    return isinstance(value, (Mapping, Namespace))


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    # a Namespace lists its leaves by dotted keys; its own dictionary has the first level
    return list(vars(value).items()) if _has_items(value) else []
