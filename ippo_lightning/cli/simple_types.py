"""Types that can be checked from the text of an annotation: numbers, texts, fixed choices, and lists of them.

Every function accepts what it is not sure about. The real parser decides on that later.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ippo_lightning.cli.sources import Definition, Source, is_dataclass, resolve

_NUMBERS = (int, float)
_MAX_DEPTH = 12  # of aliases; one that names itself ends here


@dataclass(frozen=True)
class Option:
    """One alternative of a type.

    Args:
        kind: `int`, `float`, `bool`, `str`, `none`, `choice`, `list`, `dict`, `settings`, `object`, `callable`, or
            `unsure`.
        choices: of a `choice`.
        inner: annotation of the entries of a list or the values of a dict.
        source: module in which `inner` is to be read.
        target: class of `settings` or of an `object`.
    """

    kind: str
    choices: tuple[Any, ...] = ()
    inner: ast.expr | None = None
    source: Source | None = None
    target: Definition | None = None

    @property
    def words(self) -> str:
        """What is expected, for a message."""
        if self.kind == "choice":
            return "expected one of " + ", ".join(repr(choice) for choice in self.choices)
        return f"expected an {self.kind}" if self.kind == "int" else f"expected a {self.kind}"


UNSURE = Option("unsure")


def options(annotation: ast.expr | None, source: Source, depth: int = 0) -> list[Option]:
    """Return the alternatives of an annotation.

    Args:
        annotation: from the source file.
        source: module in which its names have a meaning.
        depth: aliases that were followed already.
    """
    if annotation is None or depth > _MAX_DEPTH:
        return [UNSURE]
    if isinstance(annotation, ast.Constant):
        return _of_constant(annotation, source, depth)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [*options(annotation.left, source, depth + 1), *options(annotation.right, source, depth + 1)]
    if isinstance(annotation, ast.Subscript):
        return _of_subscript(annotation, source, depth)
    return _of_name(ast.unparse(annotation), source, depth)


def _of_constant(annotation: ast.Constant, source: Source, depth: int) -> list[Option]:
    if annotation.value is None:
        return [Option("none")]
    if not isinstance(annotation.value, str):
        return [UNSURE]
    return options(ast.parse(annotation.value, mode="eval").body, source, depth + 1)  # a quoted annotation


def _of_subscript(annotation: ast.Subscript, source: Source, depth: int) -> list[Option]:
    # by the last part, so that `typing.Optional` and `Optional` are the same
    head = ast.unparse(annotation.value).rpartition(".")[2]
    inner = annotation.slice
    entries = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
    if head == "Literal":
        return list(_choices(entries, source, depth))
    if head == "Optional":
        return [*options(inner, source, depth + 1), Option("none")]
    if head == "Union":
        return [option for entry in entries for option in options(entry, source, depth + 1)]
    if head == "list":
        return [Option("list", inner=inner, source=source)]
    if head == "dict" and len(entries) == 2:
        return [Option("dict", inner=entries[1], source=source)]
    return [Option("callable")] if head == "Callable" else [UNSURE]


def _choices(entries: list[ast.expr], source: Source, depth: int) -> Iterator[Option]:
    """Yield a Literal's constants as one choice; a name in it can be anything."""
    constants = [entry.value for entry in entries if isinstance(entry, ast.Constant)]
    yield Option("choice", choices=tuple(constants)) if len(constants) == len(entries) else UNSURE


def _of_name(name: str, source: Source, depth: int) -> list[Option]:
    # first, because a module may give a name such as `list` another meaning
    found = resolve(name, source)
    if found is None and name in ("int", "float", "bool", "str"):
        return [Option(name)]
    if found is None and name in ("list", "dict"):
        return [Option(name)]
    if not isinstance(found, Definition):
        return [UNSURE]
    if isinstance(found.node, ast.ClassDef):
        return [Option("settings" if is_dataclass(found.node) else "object", target=found)]
    is_alias = isinstance(found.node, ast.expr)
    return options(found.node, found.source, depth + 1) if is_alias else [UNSURE]  # type: ignore[arg-type]


def refuses(option: Option, value: Any) -> bool:
    """Return whether a value certainly does not fit an alternative. Entries of lists and dicts are not looked at."""
    test = _TESTS.get(option.kind)
    return test is not None and test(option, value)


def _is_no_number(_: Option, value: Any) -> bool:
    if isinstance(value, str):
        return not _reads_as_number(value)
    return isinstance(value, (list, dict))


def _reads_as_number(text: str) -> bool:
    try:
        # YAML 1.1 allows underscores inside a number, and writes infinity as .inf
        float(text.replace("_", "").strip())
    except ValueError:
        return text.strip().lower().lstrip("+-") in (".inf", ".nan")
    return True


def _is_no_bool(_: Option, value: Any) -> bool:
    if isinstance(value, str):
        # what the YAML parser reads as a truth value, and 0 and 1
        return value.strip().lower() not in ("true", "false", "yes", "no", "on", "off", "0", "1")
    return isinstance(value, (list, dict))


def _is_no_choice(option: Option, value: Any) -> bool:
    if value is None or isinstance(value, (bool, list, dict)):
        return isinstance(value, (list, dict))
    # compared as text: a YAML may give 32 for the choice '32'
    spelt = {str(choice) for choice in option.choices}
    return str(value) not in spelt and not (isinstance(value, float) and math.isnan(value))


def _is_no_list(_: Option, value: Any) -> bool:
    # a text passes: on the command line it may be a list, such as [1, 2]
    return isinstance(value, (*_NUMBERS, dict))


def _is_no_dict(_: Option, value: Any) -> bool:
    return isinstance(value, (*_NUMBERS, list))


_TESTS: dict[str, Callable[[Option, Any], bool]] = {
    "int": _is_no_number,
    "float": _is_no_number,
    "bool": _is_no_bool,
    "none": lambda _, value: value is not None,
    "choice": _is_no_choice,
    "list": _is_no_list,
    "dict": _is_no_dict,
    # a text passes here too: it may name a class or a file
    "settings": _is_no_dict,
    "object": _is_no_dict,
}
"""By kind. A text fits `str`, and almost anything can be read as one, so `str` refuses nothing."""
