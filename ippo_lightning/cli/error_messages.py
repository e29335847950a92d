"""From the long reports of the YAML parser to the one line that helps."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module

from ippo_lightning.cli.experiment_paths import axis_names
from ippo_lightning.cli.named_objects import form_hint, module_hint
from ippo_lightning.cli.near_names import meant

# parts of the parser's report that do not help: alternatives that the user did not mean, and full configurations
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value:",
    "Expected a <class 'NoneType'>",
)
_KEY = re.compile(r'^Parser key "([^"]*)":\s*(.*)$')
_CLASS = re.compile(r"^Problem with given class_path '([^']*)':\s*(.*)$")
_DENIED = re.compile(r"Importing '([^']*)' is not allowed, denied by .*? to allow it\.+")
_TYPE = re.compile(r"^Type \S.* expects a function or a callable class: (.*)$")


def one_line(message: str, *, limit: int = 400) -> str:
    r"""Return the field and what is wrong with it, on one line.

    Args:
        message: of a `UserError` or of the parser, any number of lines.
        limit: characters; a longer text is cut.

    Example:
        >>> one_line('Parser key "loop.max_iterations":\n  Expected a <class \'int\'>. Got value: many')
        'loop.max_iterations: expected an int. Got value: many'
    """
    keys: list[str] = []
    owner = ""
    parts: list[str] = []
    for raw in message.splitlines():
        line = raw.strip().removeprefix("- ")
        if not line or line.startswith(_NOISE):
            continue
        if match := _KEY.match(line):
            # reports are nested, and each level names its part of the path only
            keys.append(match.group(1))
            line = match.group(2)
        elif match := _CLASS.match(line):
            owner = match.group(1).rsplit(".", 1)[-1]
            line = match.group(2)
        if match := _TYPE.match(line):
            line = match.group(1)
        if line:
            parts.append(_plain(line))
    # alternatives of a type often fail for the same reason
    parts = list(dict.fromkeys(parts))
    # of several alternatives, the reason why one failed helps more than the types of the others
    parts = [part for part in parts if not part.startswith("expected")] or parts
    field = ".".join(keys)
    inside = f" (in {owner})" if owner else ""
    text = " ".join(parts) or "is not valid"
    if parts and all(part.startswith("expected") for part in parts) and "Got value" not in text:
        # if no alternative fits, the report gives the value only once
        given = re.search(r"Given value: (.{1,60})", message)
        alternatives = " or ".join(part.removeprefix("expected ") for part in parts)
        text = f"expected {alternatives}" + (f". Got value: {given[1]}" if given else "")
    return (f"{field}: {text}{inside}" if field else f"{text}{inside}")[:limit]


def _plain(line: str) -> str:
    """Return a line of the parser with types in plain words."""
    line = re.sub(r"^Expected a <class '([^']*)'>", lambda match: f"expected {_article(match.group(1))}", line)
    line = re.sub(r"^Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", line)
    # a word that is no class is tried as the path of a file, too
    line = re.sub(r"^Expected a path but (.*) either not accessible or invalid", r"'\1' is no class and no file", line)
    # a word that is no short name of a rule or task is tried as a class_path, too
    line = re.sub(r"^Expected a dot import path string: .*", "expected a class_path", line)
    line = _DENIED.sub(r"'\1' is part of Python itself, and no part of an experiment.", line)
    return line.replace("typing.", "")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


REPLACED = {"ppo": "use update, advantages, loss and value_loss instead"}
"""Keys of earlier versions, and what took their place."""

_UNRECOGNIZED = re.compile(r"unrecognized arguments: --(?P<key>[^\s=]+)")
_UNKNOWN = (
    re.compile(r"Option '(?P<key>[^']+)' is not accepted"),
    re.compile(r"does not accept option '(?P<key>[^']+)'"),
    _UNRECOGNIZED,
    re.compile(r"Key '(?P<key>[^']+)' is not expected"),
)
_NO_MODEL = re.compile(r'Parser key "model":[^"]*Expected a path but (?P<name>\S+) either not accessible')
_NO_MODULE = re.compile(r"No module named '(?P<name>\w+)'")
_NO_PATH = re.compile(r"Unexpected import path format: (?P<name>\S+)")
_NO_ATTRIBUTE = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)'")


def suggestion(message: str, known_keys: Iterable[str]) -> str:
    """Return the key that was probably meant, as `; did you mean 'max_iterations'?`, or nothing.

    Args:
        message: of the parser, as it is.
        known_keys: dotted keys of the command; a class that the message names adds its own arguments.

    Example:
        >>> suggestion("Subcommand 'fit' does not accept option 'loop.max_iteration'", ["loop.max_iterations"])
        "; did you mean 'loop.max_iterations'?"
    """
    found = next((match for pattern in _UNKNOWN if (match := pattern.search(message))), None)
    if found is None:
        return _models(message) or _attributes(message) or _modules(message)
    unknown = found["key"]
    if unknown.split(".")[0] in REPLACED:
        return f"; {REPLACED[unknown.split('.')[0]]}"
    classes = _CLASS_PATH.findall(message[: found.start()])
    # the last class before the key is the innermost one, which refused it
    known = _arguments_of(classes[-1]) if classes else list(known_keys)
    for wanted in (unknown, unknown.split(".")[0]):
        sections = {key.split(".")[0] for key in known} if "." not in wanted else set()
        near = difflib.get_close_matches(wanted, sorted({*known, *sections}), n=1, cutoff=0.6)
        if near:
            # of the option itself, a reader expects the dashes too
            dashes = "--" if found.re is _UNRECOGNIZED else ""
            return f"; did you mean '{dashes}{near[0]}'?"
    return ""


def _models(message: str) -> str:
    """Return the names that `--model` can take, if the parser knows no class of that name."""
    match = _NO_MODEL.search(message)
    return meant(match["name"], axis_names("model")) if match else ""


def _modules(message: str) -> str:
    """Return the dotted path that was probably meant, if a module does not exist or is written as a file."""
    if match := _NO_PATH.search(message):
        return form_hint(match["name"])
    match = _NO_MODULE.search(message)
    return module_hint(match["name"]) if match else ""


def _attributes(message: str) -> str:
    """Return the name that was probably meant of a module, which the parser has imported already."""
    match = _NO_ATTRIBUTE.search(message)
    if match is None or match["module"] not in sys.modules:
        return ""
    near = difflib.get_close_matches(match["name"], list(vars(sys.modules[match["module"]])), n=1, cutoff=0.6)
    return f"; did you mean '{match['module']}.{near[0]}'?" if near else ""


def _arguments_of(class_path: str) -> list[str]:
    """Return the names of the arguments of a class, which the parser has imported already."""
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
