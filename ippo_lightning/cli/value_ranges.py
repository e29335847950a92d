"""Ranges of arguments, checked by the constructor's own lines, without importing its module.

A constructor refuses a number in lines of its own: `require_range(...)`, or `if ...: raise UserError(...)`. Its module
may need torch, whose import costs seconds. So these lines are read from the source file and run alone, with the values
of a YAML in place of the arguments. A line that reads or calls anything unknown is left to the real constructor.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from ippo_lightning.cli.expressions import Evaluator, UnknownValueError, unpacked
from ippo_lightning.cli.simple_types import options
from ippo_lightning.cli.sources import Definition, Parameter, bases, is_dataclass, resolve, signature
from ippo_lightning.errors import UserError

_CONDITIONAL = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MAX_DEPTH = 6  # calls inside calls; a function that calls itself ends here


class _Unknown:
    """Stands for a value that cannot be told."""


_UNKNOWN = _Unknown()


@dataclass
class _Scope:
    """Where a line stands: what it may read, and whose method it belongs to."""

    found: Definition
    values: dict[str, Any]
    depth: int


def check_range(found: Definition, given: Mapping[str, Any]) -> None:
    """Refuse values that the constructor of a class, or a function, certainly refuses.

    Args:
        found: a class or function of this library.
        given: its arguments as loaded from a YAML. An argument that is left out has its default.

    Raises:
        UserError: as the constructor raises it.
    """
    _enter(found, given, depth=0)


def _enter(found: Definition, given: Mapping[str, Any], *, depth: int) -> None:
    place = _body_of(found)
    if place is None or depth > _MAX_DEPTH:
        return
    owner, body = place
    known = _values(found, given)
    if isinstance(owner.node, ast.ClassDef):
        # a dataclass checks its fields through `self`, any other constructor its arguments by name
        fields = known if is_dataclass(owner.node) else {}
        known = {"self": SimpleNamespace(**fields), **({} if fields else known)}
    _run(body, _Scope(found=owner, values=known, depth=depth))


def _values(found: Definition, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are known, by name."""
    values = {name: _value(name, given, parameter) for name, parameter in signature(found).parameters.items()}
    # left out and not marked: a line that reads such an argument is then skipped
    return {name: value for name, value in values.items() if value is not _UNKNOWN}


def _body_of(found: Definition) -> tuple[Definition, list[ast.stmt]] | None:
    """Return the lines that check arguments, and the class that defines them, or the function."""
    if isinstance(found.node, ast.FunctionDef):
        return found, found.node.body
    if not isinstance(found.node, ast.ClassDef):
        return None
    method = _method(found, "__post_init__" if is_dataclass(found.node) else "__init__")
    if method is not None:
        return found, method.body
    return next((place for base in bases(found) if isinstance(base, Definition) and (place := _body_of(base))), None)


def _method(found: Definition, name: str) -> ast.FunctionDef | None:
    body = found.node.body if isinstance(found.node, ast.ClassDef) else []
    return next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _value(name: str, given: Mapping[str, Any], parameter: Parameter) -> Any:
    """Return the value that an argument will have: what the parser makes of a plain value, or the default."""
    if name not in given:
        return _literal(parameter.default)
    value = given[name]
    found = options(parameter.annotation, parameter.source)
    kinds = {option.kind for option in found}
    if isinstance(value, SimpleNamespace):  # settings, passed on by another constructor
        return value
    if isinstance(value, Mapping):
        target = next((option.target for option in found if option.kind == "settings"), None)
        return _UNKNOWN if target is None else SimpleNamespace(**_values(target, value))
    # before the numbers, because True is an int for Python
    if value is None or isinstance(value, bool):
        return value if ("none" if value is None else "bool") in kinds else _UNKNOWN
    if isinstance(value, int) and "int" in kinds:
        return value
    if isinstance(value, (int, float)):
        # the parser makes 3 a 3.0, and a message must show the same number before and after the imports
        return float(value) if "float" in kinds else _UNKNOWN
    return value if isinstance(value, str) and kinds & {"str", "choice"} else _UNKNOWN


def _literal(text: str | None) -> Any:
    try:
        return _UNKNOWN if text is None else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _UNKNOWN


def _run(body: list[ast.stmt], scope: _Scope) -> bool:
    """Run the lines that can be run; return False if what comes after them may never be reached."""
    return all(_run_statement(node, scope) for node in body)


def _run_statement(node: ast.stmt, scope: _Scope) -> bool:
    if isinstance(node, ast.If):
        test = _evaluated(node.test, scope)
        return _skip(node, scope) if test is _UNKNOWN else _run(node.body if test else node.orelse, scope)
    if isinstance(node, ast.For):
        return _run_loop(node, scope)
    if isinstance(node, (ast.Expr, ast.Assign, ast.AnnAssign)):
        _assign(node, scope)
        return True
    if isinstance(node, ast.Return):
        _follow_calls(node, scope)
    if isinstance(node, ast.Raise) and node.exc is not None:
        error = _evaluated(node.exc, scope)
        if isinstance(error, UserError):
            raise error
    return _skip(node, scope)


def _run_loop(node: ast.For, scope: _Scope) -> bool:
    entries = _evaluated(node.iter, scope)
    # a jump would have to leave several nested blocks; such a loop is left to the constructor
    has_jump = any(isinstance(child, (ast.Break, ast.Continue)) for child in ast.walk(node))
    if entries is _UNKNOWN or has_jump:
        return _skip(node, scope)
    for entry in entries:
        scope.values.update(unpacked(node.target, entry))
        if not _run(node.body, scope):
            return False
    return True


def _assign(node: ast.Expr | ast.Assign | ast.AnnAssign, scope: _Scope) -> None:
    """Run a check, or keep the value of an assignment; what is unknown is left out, with the calls in it followed."""
    value = _evaluated(node.value, scope) if node.value is not None else _UNKNOWN
    if value is _UNKNOWN:
        _follow_calls(node, scope)
        _forget(node, scope)
        return
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        if isinstance(target, ast.Attribute):
            owner = scope.values.get(ast.unparse(target.value))
            if isinstance(owner, SimpleNamespace):
                setattr(owner, target.attr, value)
        elif isinstance(target, ast.Name):
            scope.values[target.id] = value
        else:
            _forget(node, scope)


def _skip(node: ast.stmt, scope: _Scope) -> bool:
    """Leave a statement out; return whether the next one is certainly reached, unless the constructor raises."""
    _forget(node, scope)
    return not any(isinstance(child, ast.Return) for child in ast.walk(node)) and not isinstance(node, ast.Raise)


def _forget(node: ast.AST, scope: _Scope) -> None:
    # what a skipped line assigns is unknown from here on; its earlier value would be wrong
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            scope.values.pop(child.id, None)
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store) and "self" in scope.values:
            scope.values["self"].__dict__.pop(child.attr, None)


def _evaluated(node: ast.expr, scope: _Scope) -> Any:
    try:
        return Evaluator(scope.values, partial(_constant, scope=scope)).value(node)
    except UnknownValueError:
        return _UNKNOWN


def _constant(name: str, *, scope: _Scope) -> Any:
    """Return a constant of the module; a class of this library is one, of which no plain value is an instance."""
    found = resolve(name, scope.found.source)
    value: Any = _UNKNOWN
    if isinstance(found, Definition) and isinstance(found.node, ast.ClassDef):
        value = type(found.name, (), {})
    elif isinstance(found, Definition) and isinstance(found.node, ast.expr) and scope.depth <= _MAX_DEPTH:
        value = _evaluated(found.node, _Scope(found=found, values={}, depth=scope.depth + 1))
    if value is _UNKNOWN:
        raise UnknownValueError(name)
    return value


def _follow_calls(node: ast.AST, scope: _Scope) -> None:
    """Check the arguments that a line passes on to constructors and functions of this library."""
    for call in _calls(node):
        arguments = _arguments(call, scope)
        function = ast.unparse(call.func)
        if arguments is None:
            continue
        if function.startswith("self.") and "self" in scope.values:
            method = _method(scope.found, function.removeprefix("self."))
            # a method with arguments is left to the constructor, because the scope below has `self` only
            if method is not None and not call.args and not call.keywords:
                inner = _Scope(found=scope.found, values={"self": scope.values["self"]}, depth=scope.depth + 1)
                _ = scope.depth < _MAX_DEPTH and _run(method.body, inner)
            continue
        targets = bases(scope.found) if function == "super().__init__" else [resolve(function, scope.found.source)]
        for target in targets:
            if isinstance(target, Definition):
                _enter(target, _by_name(target, arguments), depth=scope.depth + 1)


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that are made in any case."""
    if isinstance(node, _CONDITIONAL):
        return
    if isinstance(node, ast.Call):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _calls(child)


def _arguments(call: ast.Call, scope: _Scope) -> list[tuple[str | None, Any]] | None:
    """Return the arguments of a call, without names where they are positional; None if they cannot be read."""
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    found: list[tuple[str | None, Any]] = [(None, _evaluated(argument, scope)) for argument in call.args]
    for keyword in call.keywords:
        value = _evaluated(keyword.value, scope)
        if keyword.arg is None and not isinstance(value, dict):
            return None
        found += list(value.items()) if keyword.arg is None else [(keyword.arg, value)]
    return found


def _by_name(target: Definition, arguments: list[tuple[str | None, Any]]) -> dict[str, Any]:
    names = list(signature(target).parameters)
    positional = [value for name, value in arguments if name is None]
    named = {name: value for name, value in arguments if name is not None}
    return {**dict(zip(names, positional, strict=False)), **named}
