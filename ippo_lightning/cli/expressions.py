"""Values of expressions in source files: a small part of Python, interpreted node by node and never run as code."""

from __future__ import annotations

import ast
import math
import operator
import typing
from collections.abc import Callable, Iterator, Mapping
from numbers import Number
from types import SimpleNamespace
from typing import Any

from ippo_lightning.errors import UserError, require_choice, require_range

_BUILTINS = (abs, all, any, float, getattr, int, isinstance, len, list, max, min, set, sorted, str)
TOOLS: Mapping[str, Any] = {
    **{tool.__name__: tool for tool in _BUILTINS},
    **{"get_args": typing.get_args, "Literal": typing.Literal, "math": math},
    **{"UserError": UserError, "require_choice": require_choice, "require_range": require_range},
}
"""Names that every expression may use. Nothing here reads a file or changes anything."""
# these only read; `pop` or `update` would change what the next line sees
_METHODS = ("get", "items", "join", "keys", "values")
_MAX_EXPONENT = 1000  # a larger power of a number from a YAML can take forever
_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}
_FORMS: Mapping[int, Callable[[Any], Any]] = {ord("r"): repr, ord("s"): str, ord("a"): ascii, -1: lambda value: value}


class UnknownValueError(Exception):
    """The expression reads, calls or does something outside of what is interpreted."""


class Evaluator:
    """Evaluates expressions.

    Args:
        names: values by name.
        lookup: returns the value of any other name, or raises `UnknownValueError`.
    """

    def __init__(self, names: Mapping[str, Any], lookup: Callable[[str], Any]) -> None:
        self.names = names
        self.lookup = lookup

    def value(self, node: ast.AST) -> Any:
        """Return the value of an expression.

        Raises:
            UnknownValueError: the value cannot be told.
            UserError: the expression is a check that refuses a value.
        """
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise UnknownValueError(type(node).__name__)
        try:
            return method(node)
        except (UserError, UnknownValueError):
            raise
        except Exception as error:  # the expression itself fails; its own module will say how
            raise UnknownValueError(str(error)) from error

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        for known in (self.names, TOOLS):
            if node.id in known:
                return known[node.id]
        return self.lookup(node.id)

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self.value(node.value)
        if isinstance(owner, SimpleNamespace) or owner is math:
            return getattr(owner, node.attr)
        raise UnknownValueError(node.attr)

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return _OPERATORS[type(node.op)](self.value(node.operand))

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        # a text times a number from a YAML could fill the memory
        if isinstance(node.op, ast.Mult) and not (isinstance(left, Number) and isinstance(right, Number)):
            raise UnknownValueError("product")
        if isinstance(node.op, ast.Pow) and abs(right) > _MAX_EXPONENT:
            raise UnknownValueError("power")
        return _OPERATORS[type(node.op)](left, right)

    def _boolop(self, node: ast.BoolOp) -> Any:
        stops_at = isinstance(node.op, ast.Or)
        value: Any = None
        for part in node.values:
            value = self.value(part)
            if bool(value) == stops_at:
                break
        return value

    def _compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for comparison, part in zip(node.ops, node.comparators, strict=True):
            right = self.value(part)
            if not _OPERATORS[type(comparison)](left, right):
                return False
            left = right
        return True

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.value(entry) for entry in node.elts)

    def _list(self, node: ast.List) -> list[Any]:
        return [self.value(entry) for entry in node.elts]

    def _set(self, node: ast.Set) -> set[Any]:
        return {self.value(entry) for entry in node.elts}

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        pairs = zip(node.keys, node.values, strict=True)
        return {self.value(key): self.value(value) for key, value in pairs if key is not None}

    def _subscript(self, node: ast.Subscript) -> Any:
        return self.value(node.value)[self.value(node.slice)]

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        return "".join(self.value(part) for part in node.values)

    def _formattedvalue(self, node: ast.FormattedValue) -> str:
        spec = self.value(node.format_spec) if node.format_spec is not None else ""
        return format(_FORMS[node.conversion](self.value(node.value)), spec)

    def _call(self, node: ast.Call) -> Any:
        arguments = [self.value(argument) for argument in node.args]
        if any(keyword.arg is None for keyword in node.keywords):
            raise UnknownValueError("**")
        named = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value)
            if node.func.attr not in _METHODS or not isinstance(owner, (dict, str)):
                raise UnknownValueError(node.func.attr)
            return getattr(owner, node.func.attr)(*arguments, **named)
        if not isinstance(node.func, ast.Name) or node.func.id not in TOOLS:
            raise UnknownValueError("call")
        return TOOLS[node.func.id](*arguments, **named)

    def _generatorexp(self, node: ast.GeneratorExp) -> Iterator[Any]:
        return iter([inner.value(node.elt) for inner in self._rounds(node.generators)])

    def _listcomp(self, node: ast.ListComp) -> list[Any]:
        return [inner.value(node.elt) for inner in self._rounds(node.generators)]

    def _dictcomp(self, node: ast.DictComp) -> dict[Any, Any]:
        return {inner.value(node.key): inner.value(node.value) for inner in self._rounds(node.generators)}

    def _rounds(self, generators: list[ast.comprehension]) -> Iterator[Evaluator]:
        """Yield an evaluator for each entry that a comprehension goes over."""
        if len(generators) != 1:
            raise UnknownValueError("comprehension")
        for entry in self.value(generators[0].iter):
            inner = Evaluator({**self.names, **unpacked(generators[0].target, entry)}, self.lookup)
            if all(inner.value(test) for test in generators[0].ifs):
                yield inner


def unpacked(target: ast.expr, value: Any) -> dict[str, Any]:
    """Return the names that an assignment or a loop gives values to.

    Raises:
        UnknownValueError: the target is something other than a name or a tuple of names.
    """
    if isinstance(target, ast.Name):
        return {target.id: value}
    if not isinstance(target, ast.Tuple) or not all(isinstance(entry, ast.Name) for entry in target.elts):
        raise UnknownValueError("target")
    names = [entry.id for entry in target.elts if isinstance(entry, ast.Name)]
    return dict(zip(names, value, strict=True))
