"""A first look at a configuration, in a fraction of a second: unknown keys, unknown classes, wrong types.

The real parser imports torch, lightning and transformers before it can say anything, which takes seconds. This check
reads source files instead. It refuses only what the real parser refuses as well, and lets through what it is not sure
about: arguments of foreign classes, types that it cannot read, values that depend on each other.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ippo_lightning.cli.command_line import EXPERIMENT_COMMANDS, CommandLine
from ippo_lightning.cli.error_messages import REPLACED
from ippo_lightning.cli.named_objects import check_is_function, existing, module_as_function
from ippo_lightning.cli.old_names import key_hint
from ippo_lightning.cli.pretrained_names import check_pretrained
from ippo_lightning.cli.short_names import nearest_name
from ippo_lightning.cli.simple_types import Option, options, refuses
from ippo_lightning.cli.sources import PACKAGE, Definition, Signature, definition, signature
from ippo_lightning.cli.trust import CODE, REMOTE_CODE
from ippo_lightning.cli.usage_hints import no_experiment
from ippo_lightning.cli.value_ranges import check_range
from ippo_lightning.errors import UserError

LOOP, FABRIC = f"{PACKAGE}.run.settings.LoopSettings", "lightning.fabric.Fabric"
OBJECTS = ("model", "data")
FABRIC_NAMES = {
    "accelerator": ("auto", "cpu", "cuda", "gpu", "mps", "tpu"),
    "strategy": ("auto", "ddp", "ddp_find_unused_parameters_true", "deepspeed", "fsdp", "fsdp2"),
}
"""Names that Fabric takes as text; it has more, so only a word close to one of these is an error."""
# written out here, because `evaluate_parser` imports Lightning
TEXT = (Option("str"), Option("none"))
TRUST = {CODE: [Option("bool")], REMOTE_CODE: [Option("bool")]}
OPTIONS: dict[str, dict[str, Sequence[Option]]] = {
    "fit": {"resume": TEXT, **TRUST},
    "evaluate": {
        **TRUST,
        "split": [Option("choice", choices=("validation", "test"))],
        "checkpoint": TEXT,
        "output": TEXT,
    },
}
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
        # entries of a list are merged with nothing, because they may have dotted keys too
        return [merged({}, item) for item in new]
    if not isinstance(new, Mapping):
        return new
    if isinstance(old, Unreadable):
        return old
    if isinstance(old, list):  # a key inside a list: the parser changes its last entry
        return [*old[:-1], merged(old[-1], new)] if old else Unreadable()
    # a bare name is short for an object without arguments
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


@dataclass(frozen=True)
class _Place:
    """Where a value stands.

    Args:
        path: keys that lead to it, without `class_path` and `init_args`.
        owner: the class whose argument it is, or empty.
        has_ranges: whether numbers out of their range are refused; not where values may still be missing.
    """

    path: tuple[str, ...]
    owner: str = ""
    has_ranges: bool = True

    @property
    def field(self) -> str:
        """The path with dots."""
        return ".".join(self.path)

    def inside(self, key: str) -> _Place:
        """Return the place of an argument or entry."""
        return replace(self, path=(*self.path, key))


def check_command(line: CommandLine) -> None:
    """Refuse what is certainly wrong before the imports that parsing an experiment needs.

    Args:
        line: a command with its files read; of `fit` or `evaluate`, others pass.

    Raises:
        UserError: see `check_experiment`.
    """
    command = line.words[0]
    # help and a printed configuration may be asked for before the experiment is complete
    is_question = any(word.startswith(("-h", "--help", "--print_config")) or ".help" in word for word in line.words)
    if command in EXPERIMENT_COMMANDS:
        check_experiment(line.layers, command=command, is_complete=not is_question)


def check_experiment(layers: Sequence[Mapping[str, Any]], *, command: str, is_complete: bool = True) -> None:
    """Refuse what is certainly wrong with an experiment.

    Args:
        layers: the configurations and dotted words in their order, short names already expanded.
        command: `fit` or `evaluate`.
        is_complete: whether the model and the data must be there, with all their arguments.

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
    for name, kinds in {"seed_everything": [Option("int")], **OPTIONS[command]}.items():
        if name in settings:
            _check_value(settings[name], kinds, _Place((name,)))
    for name, path in (("loop", LOOP), ("fabric", FABRIC)):
        _check_section(name, path, settings.get(name))
    if is_complete:
        _require_objects(settings, command)
        check_pretrained(settings)
    for name in OBJECTS:
        _check_object(settings.get(name), _Place((name,), has_ranges=is_complete))
    callbacks = settings.get("callbacks")
    for item in callbacks if isinstance(callbacks, list) else []:
        _check_object(item, _Place(("callbacks",), has_ranges=is_complete))


def _require_objects(settings: Mapping[str, Any], command: str) -> None:
    if not any(settings.get(name) for name in (*OBJECTS, "loop", "callbacks")):
        raise no_experiment(command)
    for name in OBJECTS:
        if settings.get(name) is None:
            raise UserError(
                f"{name}: missing; expected class_path and init_args, from --config, --task, or --{name}, "
                "for example --task arithmetic"
            )


def _dotted(section: str, path: str) -> list[str]:
    found = definition(path)
    return [f"{section}.{name}" for name in signature(found).parameters] if found else []


def _check_section(name: str, path: str, given: Any) -> None:
    found = definition(path)
    if not isinstance(given, (Mapping, str, Unreadable)) and given is not None:
        raise UserError(f"{name}: expected keys and values. Got value: {given}")
    if found is None or not isinstance(given, Mapping):
        return
    arguments = signature(found)
    for key in given:
        if key not in arguments.parameters and not arguments.is_open and key != "class_path":
            raise _unknown(f"{name}.{key}", _dotted(name, path))
    for key, names in FABRIC_NAMES.items() if path == FABRIC else ():
        word = str(given.get(key) or names[0])
        near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
        if near and word.split("_")[0] not in names:  # of `ddp` there are variants such as `ddp_spawn`
            raise UserError(f"{name}.{key}: '{word}' is unknown; did you mean '{near[0]}'?")
    _check_arguments(given, arguments, _Place((name,)))
    check_range(found, given)


def _check_object(value: Any, place: _Place) -> None:
    """Check a `class_path` and its `init_args`."""
    text = value.get("class_path") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        return
    found = existing(text, place.field)
    # dict_kwargs is the parser's place for arguments that no signature names
    if found is None or not isinstance(value, Mapping) or value.get("dict_kwargs"):
        return
    given = value.get("init_args")
    _check_arguments(given, signature(found), replace(place, owner=text.rpartition(".")[2]))
    _check_range(found, given, place)


def _check_arguments(given: Any, arguments: Signature, place: _Place) -> None:
    for key, value in given.items() if isinstance(given, Mapping) else ():
        parameter = arguments.parameters.get(key)
        if parameter is not None:
            _check_value(value, options(parameter.annotation, parameter.source), place.inside(key))
        elif not arguments.is_open and place.owner:
            raise _unknown(key, arguments.parameters, place=place)


def _check_value(value: Any, wanted: Sequence[Option], place: _Place) -> None:
    if isinstance(value, Unreadable):
        return
    is_object = isinstance(value, Mapping) and isinstance(value.get("class_path"), str)
    # where a dict fits, class_path may be an entry like any other
    if is_object and not any(option.kind == "dict" for option in wanted):
        _check_object(value, place)
        return
    fitting = [option for option in wanted if not refuses(option, value)]
    if not fitting:
        said = f"{place.field}: {_expected(wanted)}. Got value: {value}"
        raise UserError(f"{said} (in {place.owner})" if place.owner else said)
    if isinstance(value, str) and value.isidentifier():
        _check_name(value, {option.kind for option in fitting}, place)
    if len(fitting) == 1:  # with several, one of them may accept what another refuses
        _check_inside(value, fitting[0], place)


def _check_name(value: str, kinds: set[str], place: _Place) -> None:
    """Refuse a bare name where an object or a function is expected."""
    near = nearest_name(value)
    # the parser also reads a value from a file of that name
    if near == value or not kinds <= {"object", "callable"} or Path(value).exists():
        return
    file_error = module_as_function(value, place.field) if kinds == {"callable"} else None
    if file_error is not None:
        raise file_error
    if near is not None:
        raise UserError(f"{place.field}: there is no {value}; did you mean '{near}'?")
    if kinds == {"callable"}:  # of a class the parser knows more names than this library's
        raise UserError(
            f"{place.field}: there is no {value}; expected the dotted path of a function, as in file.{value}"
        )


def _expected(wanted: Sequence[Option]) -> str:
    """Return what a value must be, the choices of several alternatives as one list."""
    choices = {str(choice): choice for option in wanted for choice in option.choices}
    # without null: whoever writes a wrong value did not mean it
    said = [option.words for option in wanted if option.kind not in ("none", "choice")]
    said += [Option("choice", choices=tuple(choices.values())).words] if choices else []
    return " or ".join(dict.fromkeys(said))


def _check_inside(value: Any, option: Option, place: _Place) -> None:
    """Check the entries of a list or dict, the fields of settings, or the path of a function."""
    if option.kind == "settings" and isinstance(value, Mapping) and option.target is not None:
        _check_arguments(value, signature(option.target), replace(place, owner=option.target.name))
        _check_range(option.target, value, place)
    elif option.inner is not None and option.source is not None:
        entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        for entry in entries:
            _check_value(entry, options(option.inner, option.source), place)
    elif option.kind == "callable" and isinstance(value, str) and "." in value:
        check_is_function(value, place.field)
        existing(value, place.field, note=f". Got value: {value}" + (f" (in {place.owner})" if place.owner else ""))


def _check_range(found: Definition, given: Any, place: _Place) -> None:
    """Check ranges as the class does, and complete the field, of which a class knows only the end."""
    if not place.has_ranges or not isinstance(given, Mapping):
        return
    try:
        check_range(found, given)
    except UserError as error:
        is_short = len(place.path) > 1 and str(error).startswith(f"{place.path[-1]}.")
        raise (UserError(f"{'.'.join(place.path[:-1])}.{error}") if is_short else error) from error


def _unknown(key: str, known: Collection[str], *, place: _Place | None = None) -> UserError:
    near: list[str] = []
    # the full key first; inside a misspelt section it may be near to no known key
    for wanted in (key, key.split(".")[0]):
        near = near or difflib.get_close_matches(wanted, sorted(known), n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    hint = f"; {REPLACED[key]}" if key in REPLACED else key_hint(key, known) or hint
    field = f"{place.field}: " if place is not None else ""
    inside = f" (in {place.owner})" if place is not None else ""
    return UserError(f"{field}Option '{key}' is not accepted{inside}{hint}")
