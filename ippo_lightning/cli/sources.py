"""Classes and functions read from their source files: what exists, and which arguments it takes.

Nothing is imported here. An import of torch, lightning and transformers costs seconds, and a mistake in a YAML must be
reported before that.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "ippo_lightning"
_READ = (PACKAGE, "lightning")
"""Packages whose files are read. Of another package only its existence is checked."""
_WITHOUT_ARGUMENTS = ("abc.ABC", "typing.Protocol", "typing.Generic")
"""Base classes of other packages that add no argument to a constructor."""
_MAX_HOPS = 12  # imports that lead from a public name to its definition; a circle of imports ends here


@dataclass(frozen=True, eq=False)
class Source:
    """One module, parsed.

    Args:
        module: dotted name.
        path: of its file.
        names: what the module defines or imports at its top level. An import is a dotted path as text.
        exported: `__all__`, in its order.
        is_open: whether names can exist that the file does not spell out.
    """

    module: str
    path: Path
    names: dict[str, ast.AST | str]
    exported: tuple[str, ...]
    is_open: bool


@dataclass(frozen=True)
class Definition:
    """A class, a function or an assigned value, at the place that defines it."""

    source: Source
    name: str
    node: ast.AST

    @property
    def path(self) -> str:
        """The dotted path."""
        return f"{self.source.module}.{self.name}"


@dataclass(frozen=True)
class Parameter:
    """One argument of a class or function."""

    name: str
    annotation: ast.expr | None
    source: Source
    default: str | None = None
    """As the source spells it; None if the argument is required."""


@dataclass(frozen=True)
class Signature:
    """The arguments of a class or function.

    Args:
        parameters: by name.
        is_open: whether arguments can exist that are not listed, for example through `**kwargs`.
    """

    parameters: dict[str, Parameter] = field(default_factory=dict)
    is_open: bool = False


@cache
def source_of(module: str) -> Source | None:
    """Return a module of one of the packages that are read, or None if there is no such file."""
    root, *parts = module.split(".")
    folder = _folder_of(root) if root in _READ else None
    if folder is None:
        return None
    base = folder.joinpath(*parts)
    # a package comes before a module of the same name, as in Python's own search
    for path in (base / "__init__.py", base.with_suffix(".py")) if parts else (base / "__init__.py",):
        if path.is_file():
            return _parsed(module, path)
    return None


@cache
def _folder_of(package: str) -> Path | None:
    if package == PACKAGE:
        return Path(__file__).resolve().parents[1]
    spec = find_spec(package)  # of a package without a dot, this does not import it
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _parsed(module: str, path: Path) -> Source:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: dict[str, ast.AST | str] = {}
    is_open = False
    for node in _statements(tree.body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names[node.name] = node
            # such a module makes names when they are asked for
            is_open = is_open or node.name == "__getattr__"
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(node, package)
            is_open = is_open or any(alias.name == "*" for alias in node.names)
            names.update({alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names})
        elif isinstance(node, ast.Import):
            names.update({alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names})
        else:
            names.update(dict(_assigned(node)))
    return Source(module=module, path=path, names=names, exported=_exported(names.get("__all__")), is_open=is_open)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those under `if TYPE_CHECKING` and `try` among them."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _statements(node.body)
            yield from _statements(getattr(node, "orelse", []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)
        else:
            yield node


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    # one dot is the package itself, and each further dot is one package up
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _assigned(node: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    value = getattr(node, "value", None)
    for target in targets:
        for name in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(name, ast.Name):
                yield name.id, value if isinstance(value, ast.AST) and target is name else node


def _exported(node: ast.AST | str | None) -> tuple[str, ...]:
    if not isinstance(node, (ast.List, ast.Tuple)):
        return ()
    return tuple(item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str))


def definition(path: str) -> Definition | None:
    """Return what a dotted path names, through the imports of the packages on the way, or None if unknown."""
    for _ in range(_MAX_HOPS):
        module, _, name = path.rpartition(".")
        source = source_of(module) if module else None
        found = source.names.get(name) if source is not None else None
        if source is None or found is None:
            return None
        if not isinstance(found, str):
            return Definition(source=source, name=name, node=found)
        path = found
    return None


def resolve(name: str, source: Source) -> Definition | str | None:
    """Return what a name means inside a module: its definition, the dotted path of something foreign, or None."""
    head, _, rest = name.partition(".")
    found = source.names.get(head)
    if found is None:
        return None
    if not isinstance(found, str):
        return None if rest else Definition(source=source, name=head, node=found)
    path = f"{found}.{rest}" if rest else found
    return definition(path) or path


def signature(found: Definition) -> Signature:
    """Return the arguments of a class or function; an open signature if they cannot be read."""
    if isinstance(found.node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return _of_function(found.node, found.source, is_method=False)
    if not isinstance(found.node, ast.ClassDef):
        return Signature(is_open=True)
    # the constructor of a dataclass is generated, so the source does not contain it
    if is_dataclass(found.node):
        return _of_dataclass(found)
    for node in found.node.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _of_function(node, found.source, is_method=True)
    for base in bases(found):
        if base not in _WITHOUT_ARGUMENTS:
            return signature(base) if isinstance(base, Definition) else Signature(is_open=True)
    return Signature()


def bases(found: Definition) -> list[Definition | str | None]:
    """Return the base classes of a class, in their order."""
    if not isinstance(found.node, ast.ClassDef):
        return []
    # without type parameters: `Dataset[Row]` is the class `Dataset`
    return [resolve(ast.unparse(base).split("[")[0], found.source) for base in found.node.bases]


def is_a(found: Definition, wanted: str) -> bool:
    """Return whether a class has a base class of this name, at any distance."""
    for base in bases(found):
        # by name alone: of a base class in a package that is not read, only the path is known
        path = base.path if isinstance(base, Definition) else base or ""
        if path.rpartition(".")[2] == wanted or (isinstance(base, Definition) and is_a(base, wanted)):
            return True
    return False


def is_dataclass(node: ast.AST) -> bool:
    """Return whether a class is decorated as a dataclass."""
    decorators = getattr(node, "decorator_list", [])
    return any(ast.unparse(item).split("(")[0].endswith("dataclass") for item in decorators)


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, source: Source, *, is_method: bool) -> Signature:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    # ast lists only the defaults that exist, and they belong to the last positional arguments
    spelt: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    pairs = [*zip(positional, spelt, strict=True)][1 if is_method else 0 :]
    pairs += list(zip(given.kwonlyargs, given.kw_defaults, strict=True))
    parameters = {
        arg.arg: Parameter(arg.arg, arg.annotation, source, ast.unparse(value) if value is not None else None)
        for arg, value in pairs
    }
    return Signature(parameters=parameters, is_open=given.kwarg is not None or given.vararg is not None)


def _of_dataclass(found: Definition) -> Signature:
    parameters: dict[str, Parameter] = {}
    is_open = False
    # fields of base classes come first, as in the generated constructor
    for base in bases(found):
        if base in _WITHOUT_ARGUMENTS:
            continue
        inherited = signature(base) if isinstance(base, Definition) else Signature(is_open=True)
        parameters.update(inherited.parameters)
        is_open = is_open or inherited.is_open
    assert isinstance(found.node, ast.ClassDef)
    for node in found.node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            spelt = ast.unparse(node.value) if node.value is not None else None
            # neither of them is an argument of the constructor
            if "ClassVar" in ast.unparse(node.annotation) or "init=False" in (spelt or ""):
                continue
            parameters[node.target.id] = Parameter(node.target.id, node.annotation, found.source, spelt)
    return Signature(parameters=parameters, is_open=is_open)
