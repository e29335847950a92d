"""What the dotted path of a class or function names, as far as source files tell without an import."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from ippo_lightning.cli.old_names import class_hint
from ippo_lightning.cli.short_names import ROOMS, nearest_name
from ippo_lightning.cli.sources import PACKAGE, Definition, definition, source_of
from ippo_lightning.errors import UserError

_FILE = re.compile(r"(?P<file>[\w./-]+)\.py(?:[:.](?P<name>\w+))?")


def existing(text: str, field: str, note: str | None = None) -> Definition | None:
    """Return what a class path names, or None if it cannot be told.

    Args:
        text: the dotted path, or a short name.
        field: the user's setting, for messages.
        note: the end of a message; None for one that names the class.

    Raises:
        UserError: there is certainly no such class or function.
    """
    module, _, name = text.rpartition(".")
    said = f" (in {name})" if note is None else note
    _check_form(text, field)
    # a bare name that is near to none of this library may be a class that an import of the parser brings along
    if not module:
        near = nearest_name(text)
        if class_hint(text):
            raise UserError(f"{field}: there is no class {text}{class_hint(text)}")
        if near is not None and near != text:
            raise UserError(f"{field}: there is no class {text}; did you mean '{near}'?")
        return None
    top = text.split(".")[0]
    # only the top package is looked up: to find a submodule, Python would import its parents
    if top != PACKAGE:
        if top in sys.stdlib_module_names:
            raise UserError(f"{field}: '{text}' is part of Python itself, and no part of an experiment")
        if top not in sys.modules and _is_missing(top):
            raise UserError(f"{field}: No module named '{top}'{said}{module_hint(top)}")
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
    # the package itself imports lazily too, but its TYPE_CHECKING block lists every name
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


def _check_form(text: str, field: str) -> None:
    """Refuse `file.py:function`, which other programs take, and which is a dotted path here."""
    hint = form_hint(text)
    if hint:
        raise UserError(f"{field}: '{text}' is no dotted path{hint}")


def form_hint(text: str) -> str:
    """Return the dotted path that `file.py:function` stands for, as the end of a message; empty for any other text.

    Example:
        >>> form_hint("rewards/mine.py:short"), form_hint("rewards.mine.short")
        ('; did you mean rewards.mine.short?', '')
    """
    match = _FILE.fullmatch(text)
    if match is None:
        return ""
    module = ".".join(part for part in Path(match["file"]).parts if part not in (".", "/"))
    return f"; did you mean {module}.{match['name']}?" if match["name"] else f"; expected {module}.FUNCTION"


def check_is_function(text: str, field: str) -> None:
    """Refuse the dotted path of a plain value in a file of the working folder, where a function is expected.

    Args:
        text: the dotted path.
        field: the user's setting, for messages.

    Raises:
        UserError: the file assigns a literal to the name and defines nothing else of it.
    """
    module, _, name = text.rpartition(".")
    if "." in module or module in sys.modules:
        return
    values = [
        node.value
        for node in _statements(module)
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets)
    ]
    is_plain = bool(values) and all(isinstance(value, (ast.Constant, ast.List, ast.Dict)) for value in values)
    if is_plain and name not in functions_in(module):
        raise UserError(f"{field}: {name} is no function; expected one in {module}.py{_example(module)}")


def module_as_function(name: str, field: str) -> UserError | None:
    """Return the error of a file of the working folder that stands where a function in it is expected, if it is one.

    Args:
        name: what the user wrote.
        field: the user's setting, for messages.
    """
    if not Path(f"{name}.py").is_file():
        return None
    return UserError(f"{field}: {name} is a file; expected a function in it{_example(name) or f', as {name}.FUNCTION'}")


def functions_in(module: str) -> list[str]:
    """Return the names of the functions and classes that a file of the working folder defines for others.

    Args:
        module: the name of the file without `.py`.
    """
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in _statements(module) if isinstance(node, kinds) and not node.name.startswith("_")]


def _example(module: str) -> str:
    names = functions_in(module)
    return f", such as {module}.{names[0]}" if names else ""


def _statements(module: str) -> list[ast.stmt]:
    """Return the outermost statements of a file, which is parsed and not run; none if it cannot be."""
    try:
        return ast.parse(Path(f"{module}.py").read_bytes()).body
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []


def module_hint(name: str) -> str:
    """Return the file of the working folder whose name is near to that of a module, as the end of a message.

    Args:
        name: of the module, without its package.
    """
    near = difflib.get_close_matches(name, sorted(path.stem for path in Path().glob("*.py")), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}', of {near[0]}.py?" if near else ""
