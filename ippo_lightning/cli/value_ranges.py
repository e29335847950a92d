"""Ranges of settings, checked by the settings themselves where that needs no heavy import."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from ippo_lightning.cli.simple_types import options
from ippo_lightning.cli.sources import PACKAGE, Definition, Parameter, Source, signature, source_of
from ippo_lightning.errors import UserError

_PLAIN = (int, float, str)


def check_range(found: Definition, given: Mapping[str, Any]) -> None:
    """Build settings from plain values; they refuse a number out of its range themselves.

    Args:
        found: a dataclass of this library.
        given: its fields as loaded from a YAML.

    Raises:
        UserError: as the settings raise it.
    """
    parameters = signature(found).parameters
    values = {key: _converted(value, parameters[key]) for key, value in given.items() if key in parameters}
    if len(values) < len(given) or any(value is NotImplemented for value in values.values()):
        return
    settings = _light_class(found)
    if settings is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself warns
        try:
            settings(**values)
        except UserError:
            raise
        except Exception:  # an object that a plain value stands for; the parser knows how to make it
            return


def _converted(value: Any, parameter: Parameter) -> Any:
    """Return a plain value as the parser would convert it, or NotImplemented if that is not certain."""
    kinds = {option.kind for option in options(parameter.annotation, parameter.source)}
    if value is None:
        return None if "none" in kinds else NotImplemented
    if isinstance(value, bool):
        return value if "bool" in kinds else NotImplemented
    if isinstance(value, (int, float)):
        number = "int" in kinds if isinstance(value, int) else False
        return value if number else float(value) if "float" in kinds else NotImplemented
    return value if isinstance(value, str) and kinds & {"str", "choice"} else NotImplemented


def _light_class(found: Definition) -> Any:
    """Return a class of which neither its own file nor its imports need a heavy library, or None."""
    source = found.source
    if source.module.split(".")[0] != PACKAGE or not _imports_are_light(source.module):
        return None
    if all(_imports_are_light(package) for package in _packages_above(source.module)):
        return getattr(import_module(source.module), found.name, None)
    return getattr(_loaded_alone(source), found.name, None)


def _packages_above(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


@cache
def _loaded_alone(source: Source) -> Any:
    """Run a light file by itself, so that the heavy imports of its package stay out."""
    name = f"{__name__}.{source.module.replace('.', '_')}"
    spec = spec_from_file_location(name, source.path)
    assert spec is not None, "made from the path of a file"
    assert spec.loader is not None, "the loader of Python files"
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module of a class by its name
    spec.loader.exec_module(module)
    return module


@cache
def _imports_are_light(module: str) -> bool:
    """Return whether importing a module brings in the standard library and light modules of this library only."""
    source = source_of(module)
    if source is None:
        return False
    tree = ast.parse(source.path.read_text(encoding="utf-8"))
    return all(_is_light(name) for node in tree.body for name in _imported(node))


def _imported(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield "." if node.level else node.module or "."
    elif isinstance(node, ast.Try):
        yield from (name for inner in node.body for name in _imported(inner))


def _is_light(module: str) -> bool:
    root = module.split(".")[0]
    if root == PACKAGE:
        return _imports_are_light(module) and all(_imports_are_light(package) for package in _packages_above(module))
    return root in sys.stdlib_module_names
