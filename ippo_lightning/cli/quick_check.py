"""A first look at a configuration, in a fraction of a second: unknown keys, unknown classes, wrong types.

The real parser imports torch, lightning and transformers before it can say anything, which takes seconds. This check
reads source files instead. It refuses only what the real parser refuses as well, and lets through what it is not sure
about: arguments of foreign classes, types that it cannot read, values that depend on each other.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ippo_lightning.cli.error_messages import REPLACED
from ippo_lightning.cli.old_names import class_hint, key_hint
from ippo_lightning.cli.short_names import ROOMS, nearest_name
from ippo_lightning.cli.simple_types import Option, options, refuses
from ippo_lightning.cli.sources import PACKAGE, Definition, Signature, definition, signature, source_of
from ippo_lightning.cli.value_ranges import check_range
from ippo_lightning.errors import UserError

LOOP, FABRIC = f"{PACKAGE}.run.settings.LoopSettings", "lightning.fabric.Fabric"
OBJECTS = ("model", "data")
OPTIONS = {"fit": ("resume",), "evaluate": ("split", "checkpoint", "output")}
"""Options of a command beside the sections of an experiment."""


class Unreadable:
    """Stands for a value that cannot be followed; nothing about it is checked."""


def merged(old: Any, new: Any) -> Any:
    """Return `new` laid over `old`, as the parser lays one configuration over another.

    Args:
        old: an earlier value.
        new: a later value. Dotted keys go into sections, and `key+` appends to the list under `key`.
    """
    if isinstance(new, list):
        return [merged({}, item) for item in new]
    if not isinstance(new, Mapping):
        return new
    if isinstance(old, (list, Unreadable)):  # a key inside a list: the parser changes its last entry
        return Unreadable()
    kept = {"class_path": old} if isinstance(old, str) else dict(old) if isinstance(old, Mapping) else {}
    if kept.get("class_path") not in (None, new.get("class_path", kept.get("class_path"))):
        kept = {}  # of another class; arguments that both have are left to the parser
    for key, value in new.items():
        _put(kept, str(key), value)
    return kept


def _put(kept: dict[str, Any], key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if rest:
        kept[head] = merged(kept.get(head), {rest: value})
    elif key.endswith("+"):
        before = kept.get(key[:-1])
        added = merged([], value if isinstance(value, list) else [value])
        kept[key[:-1]] = [*(before if isinstance(before, list) else []), *added]
    else:
        kept[key] = merged(kept.get(key), value)


def check_experiment(layers: Sequence[Mapping[str, Any]], *, command: str, is_complete: bool = True) -> None:
    """Refuse what is certainly wrong with an experiment.

    Args:
        layers: the configurations and dotted words in their order, short names already expanded.
        command: `fit` or `evaluate`.
        is_complete: whether the model and the data must be there.

    Raises:
        UserError: one line, as the real parser reports it, with the key or class that was probably meant.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        settings = merged(settings, layer)
    known = {"seed_everything", "fabric", "loop", "model", "data", "callbacks", "config", *OPTIONS[command]}
    for key, value in settings.items():
        if key not in known:
            dotted = f"{key}.{next(iter(value))}" if isinstance(value, Mapping) and value else key
            raise _unknown(dotted, [*known, *_dotted("loop", LOOP), *_dotted("fabric", FABRIC)])
    _check_value(settings.get("seed_everything", 0), [Option("int")], ["seed_everything"], owner="")
    for name, path in (("loop", LOOP), ("fabric", FABRIC)):
        _check_section(name, path, settings.get(name))
    for name in OBJECTS:
        if is_complete and settings.get(name) is None:
            raise UserError(f"{name}: missing; expected class_path and init_args, from --config, --task, or --{name}")
        _check_object(settings.get(name), [name])
    callbacks = settings.get("callbacks")
    for item in callbacks if isinstance(callbacks, list) else []:
        _check_object(item, ["callbacks"])


def _dotted(section: str, path: str) -> list[str]:
    found = definition(path)
    return [f"{section}.{name}" for name in signature(found).parameters] if found else []


def _check_section(name: str, path: str, given: Any) -> None:
    found = definition(path)
    if found is None or not isinstance(given, Mapping):
        return
    arguments = signature(found)
    for key in given:
        if key not in arguments.parameters and not arguments.is_open and key != "class_path":
            raise _unknown(f"{name}.{key}", _dotted(name, path))
    _check_arguments(given, arguments, [name], owner="")
    check_range(found, given)


def _check_object(value: Any, path: list[str]) -> None:
    """Check a `class_path` and its `init_args`."""
    text = value.get("class_path") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        return
    found = _existing(text, path)
    if found is None or not isinstance(value, Mapping) or value.get("dict_kwargs"):
        return
    _check_arguments(value.get("init_args"), signature(found), path, owner=text.rpartition(".")[2])


def _check_arguments(given: Any, arguments: Signature, path: list[str], *, owner: str) -> None:
    for key, value in given.items() if isinstance(given, Mapping) else ():
        parameter = arguments.parameters.get(key)
        if parameter is not None:
            _check_value(value, options(parameter.annotation, parameter.source), [*path, key], owner=owner)
        elif not arguments.is_open and owner:
            raise _unknown(key, arguments.parameters, path=path, owner=owner)


def _check_value(value: Any, wanted: list[Option], path: list[str], *, owner: str) -> None:
    if isinstance(value, Unreadable):
        return
    is_object = isinstance(value, Mapping) and isinstance(value.get("class_path"), str)
    if is_object and not any(option.kind == "dict" for option in wanted):
        _check_object(value, path)
        return
    fitting = [option for option in wanted if not refuses(option, value)]
    if not fitting:
        said = f"{'.'.join(path)}: {_expected(wanted)}. Got value: {value}"
        raise UserError(f"{said} (in {owner})" if owner else said)
    if len(fitting) == 1:  # with several, one of them may accept what another refuses
        _check_inside(value, fitting[0], path, owner=owner)


def _expected(wanted: Sequence[Option]) -> str:
    """Return what a value must be, the choices of several alternatives as one list."""
    choices = {str(choice): choice for option in wanted for choice in option.choices}
    said = [option.words for option in wanted if option.kind not in ("none", "choice")]
    said += [Option("choice", choices=tuple(choices.values())).words] if choices else []
    return " or ".join(dict.fromkeys(said))


def _check_inside(value: Any, option: Option, path: list[str], *, owner: str) -> None:
    """Check the entries of a list or dict, the fields of settings, or the path of a function."""
    if option.kind == "settings" and isinstance(value, Mapping) and option.target is not None:
        _check_arguments(value, signature(option.target), path, owner=option.target.name)
        _check_range(option.target, value, path)
    elif option.inner is not None and option.source is not None:
        entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        for entry in entries:
            _check_value(entry, options(option.inner, option.source), path, owner=owner)
    elif option.kind == "callable" and isinstance(value, str) and "." in value:
        _existing(value, path, note=f". Got value: {value}" + (f" (in {owner})" if owner else ""))


def _check_range(found: Definition, given: Mapping[str, Any], path: Sequence[str]) -> None:
    """Check ranges as the settings do, and complete the field, of which settings know only their own end."""
    try:
        check_range(found, given)
    except UserError as error:
        is_short = len(path) > 1 and str(error).startswith(f"{path[-1]}.")
        raise (UserError(f"{'.'.join(path[:-1])}.{error}") if is_short else error) from error


def _existing(text: str, path: list[str], note: str | None = None) -> Definition | None:
    """Return what a class path names, or None if it cannot be told.

    Raises:
        UserError: there is certainly no such class or function.
    """
    module, _, name = text.rpartition(".")
    said = f" (in {name})" if note is None else note
    field = ".".join(path)
    if not module:
        near = nearest_name(text)
        if class_hint(text):
            raise UserError(f"{field}: there is no class {text}{class_hint(text)}")
        if near is not None and near != text:
            raise UserError(f"{field}: there is no class {text}; did you mean '{near}'?")
        return None
    top = text.split(".")[0]
    if top != PACKAGE:
        if top not in sys.modules and _is_missing(top):
            raise UserError(f"{field}: No module named '{top}'{said}")
        return None
    return _own(module, name, field, said)


def _own(module: str, name: str, field: str, said: str) -> Definition | None:
    """Return a class or function of this library."""
    found = definition(f"{module}.{name}")
    if found is not None:
        return found
    source = source_of(module)
    if source is None and definition(module) is None:
        raise _no_module(module, field, said)
    if source is None:  # an attribute of a class
        return None
    is_submodule = source_of(f"{module}.{name}") is not None
    if name in source.names or is_submodule or (source.is_open and module != PACKAGE):
        return None
    near = difflib.get_close_matches(name, sorted(source.names), n=1, cutoff=0.6)
    hint = class_hint(name) or (f"; did you mean '{near[0]}'?" if near else "")
    raise UserError(f"{field}: module '{module}' has no attribute '{name}'{said}{hint}")


def _no_module(module: str, field: str, said: str) -> UserError:
    near = difflib.get_close_matches(module, [f"{PACKAGE}.{room}" for room in ROOMS], n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UserError(f"{field}: No module named '{module}'{said}{hint}")


def _is_missing(top: str) -> bool:
    try:
        return top.isidentifier() and find_spec(top) is None
    except (ImportError, ValueError):
        return False


def _unknown(key: str, known: Collection[str], *, path: Sequence[str] = (), owner: str = "") -> UserError:
    near: list[str] = []
    for wanted in (key, key.split(".")[0]):
        near = near or difflib.get_close_matches(wanted, sorted(known), n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    hint = f"; {REPLACED[key]}" if key in REPLACED else key_hint(key, known) or hint
    field = f"{'.'.join(path)}: " if path else ""
    inside = f" (in {owner})" if owner else ""
    return UserError(f"{field}Option '{key}' is not accepted{inside}{hint}")
