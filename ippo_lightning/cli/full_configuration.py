"""The whole configuration of a run: what null or a short name stands for is written out with all of its arguments.

A class states this itself: `standard_parts` names the class that a missing argument becomes, `named_parts` the classes
behind the short names of an argument, `used_values` what null stands for.
"""

from __future__ import annotations

import inspect
import pydoc
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ippo_lightning.cli.short_names import short_names


class FullParser(ArgumentParser):
    """A parser whose printed and stored configurations are whole."""

    def dump(self, namespace: Namespace, *arguments: Any, **settings: Any) -> str:
        """Return the configuration as text; arguments as of jsonargparse."""
        whole = namespace.clone()
        fill_parts(whole)
        return str(super().dump(whole, *arguments, **settings))


def fill_parts(value: Any) -> None:
    """Write out the standard and the named parts of all objects of a configuration, at any depth.

    Args:
        value: parsed; changed in place.
    """
    if isinstance(value, list):
        for item in value:
            fill_parts(item)
        return
    items = vars(value) if isinstance(value, Namespace) else value
    if not isinstance(items, dict):
        return
    arguments = items.get("init_args")
    if isinstance(items.get("class_path"), str) and isinstance(arguments, Namespace):
        _fill(pydoc.locate(items["class_path"]), arguments)
    for item in items.values():
        fill_parts(item)


def _fill(target: Any, arguments: Namespace) -> None:
    # not by `vars`, which has other keys for arguments such as `update` that are methods of a Namespace
    hints = _hints(target)
    for name, part in _stated(target, "standard_parts").items():
        if name in arguments and arguments[name] is None and _is_own_argument(target, name):
            arguments[name] = _written_out(part, hints.get(name))
    for name, value in _used_values(target, arguments).items():
        if name in arguments and arguments[name] is None and _is_own_argument(target, name):
            arguments[name] = value
    for name, classes in _stated(target, "named_parts").items():
        if isinstance(arguments.get(name), str) and arguments[name] in classes:
            arguments[name] = _written_out(classes[arguments[name]], None)


def _used_values(target: Any, arguments: Namespace) -> Mapping[str, Any]:
    """Return the plain values that null stands for, if a class of this library states them."""
    stated = getattr(target, "used_values", None)
    is_own = str(getattr(stated, "__module__", "")).partition(".")[0] == "ippo_lightning"
    return stated(vars(arguments)) if callable(stated) and is_own else {}


def _stated(target: Any, name: str) -> Mapping[str, Any]:
    found = getattr(target, name, None)
    return found if isinstance(found, Mapping) else {}


def _is_own_argument(target: Any, name: str) -> bool:
    """Return whether a class of this library takes the argument; in another one, None may mean otherwise."""
    for kind in getattr(target, "__mro__", ()):
        if "__init__" in vars(kind) and name in inspect.signature(kind.__init__).parameters:
            return str(kind.__module__).partition(".")[0] == "ippo_lightning"
    return False


def _hints(target: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(target.__init__)
    except Exception:  # of a user's class, whose annotations may be any code
        return {}


def _written_out(part: type, hint: Any) -> Namespace:
    """Return a class with its default arguments, in the form that the parser reads for an argument of this type."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(part, "part")
    arguments = parser.get_defaults().get("part", Namespace())
    # settings have one class, which the parser knows from the type
    if is_dataclass(part) and part in (hint, *typing.get_args(hint)):
        return arguments
    return Namespace(class_path=_public_path(part), init_args=arguments)


def _public_path(part: type) -> str:
    paths = short_names().get(part.__name__, ())
    return paths[0] if paths and pydoc.locate(paths[0]) is part else f"{part.__module__}.{part.__qualname__}"
