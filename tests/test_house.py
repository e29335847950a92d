"""The house rules that no linter knows: sizes, names, dangerous calls, and public names that exist."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

MAX_LINES = 350
OTHER_FOLDERS = (".ci", "benchmarks", "docs", "examples", "tests")
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "shared"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "os.popen",
    "os.system",
    "pickle.load",
    "pickle.loads",
    "torch.serialization.add_safe_globals",
    "yaml.load",
    "yaml.unsafe_load",
}
UNSAFE_ARGUMENTS = {"weights_only": False, "trust_remote_code": True, "shell": True, "allow_pickle": True}


@pytest.fixture(scope="module")
def all_files(repository: Path, library_files: list[Path]) -> list[Path]:
    """Every Python file of the project but what runs leave behind."""
    others = [path for folder in OTHER_FOLDERS for path in sorted((repository / folder).rglob("*.py"))]
    return library_files + [path for path in others if "runs" not in path.parts]


def unsafe_calls(tree: ast.AST) -> list[str]:
    """What runs code, unpickles or starts a shell, and parameters that do so unless told otherwise."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).removeprefix("builtins.")
            found += [f"line {node.lineno}: {name}(" for _ in range(name in UNSAFE_CALLS)]
            given = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = defaults(node.args)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            given = [(node.target.id, node.value)]
        elif isinstance(node, ast.Dict):
            given = [
                (key.value, value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            ]
        else:
            continue
        found += [
            f"line {node.lineno}: {name}={UNSAFE_ARGUMENTS[name]}" for name, value in given if is_unsafe(name, value)
        ]
    return found


def defaults(arguments: ast.arguments) -> list[tuple[str, ast.expr | None]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    pairs = [
        *zip(with_default, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return [(argument.arg, value) for argument, value in pairs]


def is_unsafe(name: object, value: ast.expr | None) -> bool:
    return name in UNSAFE_ARGUMENTS and isinstance(value, ast.Constant) and value.value is UNSAFE_ARGUMENTS[name]


def test_no_file_has_grown_into_two(all_files: list[Path]) -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in all_files}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}


def test_every_file_says_by_its_name_what_is_in_it(all_files: list[Path]) -> None:
    assert not [path for path in all_files if {path.stem, path.parent.name} & VAGUE_NAMES]


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "builtins.exec(text)",
        "pickle.loads(data)",
        "yaml.load(text, Loader=loader)",
        "os.system(command)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(command, shell=True)",
        "load(**{'trust_remote_code': True})",
        "def load(path, trust_remote_code=True): ...",
        "def load(path, *, trust_remote_code: bool = True): ...",
        "class Settings:\n    trust_remote_code: bool = True",
    ],
)
def test_the_search_for_unsafe_calls_finds(code: str) -> None:
    assert len(unsafe_calls(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "yaml.safe_load(text)",
        "torch.load(path, weights_only=True)",
        "load(path, trust_remote_code=trust_remote_code)",
        "def load(path, *, trust_remote_code: bool = False): ...",
    ],
)
def test_the_search_for_unsafe_calls_leaves_alone(code: str) -> None:
    assert not unsafe_calls(ast.parse(code))


def test_nothing_runs_text_or_unpickles_it(all_files: list[Path], repository: Path) -> None:
    source = [path for path in all_files if not path.is_relative_to(repository / "tests")]
    found = {str(path): unsafe_calls(ast.parse(path.read_text())) for path in source}
    assert not {path: calls for path, calls in found.items() if calls}


def test_the_library_imports_its_rooms_and_not_its_front_door(library_files: list[Path], repository: Path) -> None:
    """A name taken from the package itself would slip past the import contracts."""
    rooms = {entry.stem for entry in (repository / "ippo_lightning").iterdir()} | {"__version__"}
    taken = {
        f"{path}: {alias.name}"
        for path in library_files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "ippo_lightning"
        for alias in node.names
        if alias.name not in rooms
    }
    assert not taken


def test_every_public_name_exists_and_is_named_once(library_modules: dict[str, Path]) -> None:
    wrong = []
    for name in library_modules:
        module = importlib.import_module(name)
        public = list(getattr(module, "__all__", []))
        wrong += [f"{name}.{attribute}" for attribute in public if not hasattr(module, attribute)]
        wrong += [f"{name}.__all__ has doubles" for _ in range(len(public) != len(set(public)))]
    assert not wrong


def test_every_room_says_what_is_public(library_modules: dict[str, Path]) -> None:
    rooms = [name for name, path in library_modules.items() if path.name == "__init__.py"]
    assert not [name for name in rooms if not hasattr(importlib.import_module(name), "__all__")]


def test_examples_in_docstrings_print_what_they_show(library_modules: dict[str, Path]) -> None:
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    for name, path in library_modules.items():
        if ">>> " in path.read_text():
            assert doctest.testmod(importlib.import_module(name), optionflags=options).failed == 0, name
