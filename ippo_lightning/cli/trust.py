"""What a run's folder may name: the folder may be a stranger's, so code outside this package needs the user's word.

A YAML of one's own is code, and runs what it names. The `config.yaml` in the folder of a run is data: it arrives with
the folder. It may name classes and functions of this library and of Lightning. For anything else the user adds
`--trust`, or has run the same configuration before (`storage/own_runs.py`).
"""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ippo_lightning.cli.short_names import short_names
from ippo_lightning.cli.sources import PACKAGE, definition
from ippo_lightning.cli.yaml_text import load_yaml
from ippo_lightning.errors import UserError
from ippo_lightning.storage.locks import LOCK
from ippo_lightning.storage.own_runs import is_own_run, remember_run
from ippo_lightning.storage.run_folder import (
    BUFFERS,
    CHECKPOINTS,
    COMPLETIONS,
    CONFIG,
    CSV,
    EPISODES,
    EVALUATIONS,
    FRAMES,
    HISTORY,
    MODEL,
    RESULTS,
)
from ippo_lightning.storage.untrusted_text import visible_text

CODE, REMOTE_CODE = "trust", "trust_remote_code"
"""The options, without dashes."""
COMMANDS = ("fit", "evaluate", "export", "replay", "diagnose", "trace", "intervene")
"""Commands that build what the configuration of a run names; `report` and `compare` build nothing."""
_BESIDE = (
    HISTORY, EVALUATIONS, EPISODES, RESULTS, LOCK, CHECKPOINTS, MODEL, CSV, COMPLETIONS, FRAMES, BUFFERS
)  # fmt: skip
_ATTENTION, _OF_TORCH = "attn_implementation", ("eager", "sdpa", "flex_attention")
_MOST_NAMED = 5


@dataclass(frozen=True)
class Trust:
    """What the user's words allow.

    Args:
        code: to run code that a run's folder names (`--trust`).
        remote_code: to run code that comes with a model, if the folder wants it (`--trust_remote_code`).
    """

    code: bool = False
    remote_code: bool = False


@dataclass(frozen=True)
class RunConfig:
    """The configuration in a run's folder: its path, its text, and its content."""

    path: Path
    text: str
    content: Mapping[str, Any]


def without_trust(words: Sequence[str]) -> tuple[list[str], Trust]:
    """Return the words without the two options, and what they allow.

    Args:
        words: the command first. `--trust`, `--trust true` and `--trust=true` are the same.
    """
    if not words or words[0] not in COMMANDS:
        return list(words), Trust()
    kept: list[str] = []
    given = {CODE: False, REMOTE_CODE: False}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        option = name.removeprefix("--")
        if not word.startswith("--") or option not in given:
            kept.append(word)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and waiting[0].lower() in ("true", "false") else "true"
        if value.lower() not in ("true", "false"):
            raise UserError(f"{option}: expected true or false. Got value: {value}")
        given[option] = value.lower() == "true"
    return kept, Trust(code=given[CODE], remote_code=given[REMOTE_CODE])


def is_run_config(path: Path) -> bool:
    """Return whether a file is the configuration in a run's folder, by its name and what lies beside it."""
    return path.name == CONFIG and any((path.parent / name).exists() for name in _BESIDE)


def run_config(path: Path, text: str, content: Mapping[str, Any]) -> RunConfig:
    """Return the configuration in a run's folder.

    Args:
        path: of the file.
        text: as it is.
        content: of the text.

    Raises:
        UserError: a section is the name of a file, which the parser would read; `ippo fit` writes none like that.
    """
    for name in ("config", "loop", "fabric"):
        if isinstance(content.get(name), (str, list)):
            raise UserError(f"{name}: {path} names another file, {content[name]}; expected what that file contains")
    return RunConfig(path, text, content)


def check_trust(
    configs: Sequence[RunConfig], *, trust: Trust, own_layers: Sequence[Mapping[str, Any]], given: Sequence[str]
) -> bool:
    """Refuse what a run's folder names and the user has not allowed.

    Args:
        configs: the configurations of run folders among the files of a command.
        trust: what the user's words allow.
        own_layers: the user's own files and words; what they name is the user's choice.
        given: the words as the user typed them, for the message.

    Returns:
        Whether all configurations are the user's own or trusted. If not, they name nothing outside this library, and
        the caller must not look for code in the working folder or in files that they name.

    Raises:
        UserError: a folder names code outside this library, or code that comes with a model.
    """
    is_trusted = True
    for config in configs:
        if not trust.remote_code and _remote_code(config.content) and not any(map(_remote_code, own_layers)):
            raise UserError(
                f"{REMOTE_CODE}: {config.path} turns on code that comes with a model; to run it, repeat it: "
                f"{_command(given, REMOTE_CODE)}"
            )
        if trust.code or is_own_run(config.text):
            continue
        named = list(dict.fromkeys(outside_names(config.content)))
        if named and not _asked(config, named):
            more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
            raise UserError(
                f"{CODE}: {config.path} names code outside ippo-lightning: {', '.join(named[:_MOST_NAMED])}{more}; if "
                f"you trust it, run it with {_command(given, CODE)}"
            )
        # a yes of the user counts for this configuration as a run of their own does
        is_trusted = is_trusted and bool(named)
    return is_trusted


def search_working_folder() -> None:
    """Let a `class_path` name a module beside the YAML; only for what `check_trust` calls trusted."""
    # at the end, so that it hides no installed module
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def outside_names(content: Any) -> Iterator[str]:
    """Yield what the content of a configuration names outside this library and Lightning, at any depth.

    Every text counts that is a dotted path into a package that can be imported, wherever it stands: which arguments
    take a class or a function is known only after the imports that this check comes before.

    Args:
        content: of a YAML. A text in it may be YAML itself, as the parser reads it.
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            # a kernel for attention is fetched from the Hub and run
            if str(key).endswith(_ATTENTION) and isinstance(value, str) and value not in _OF_TORCH:
                yield value
            yield from outside_names(value)
    elif isinstance(content, (list, tuple, set)):
        for value in content:
            yield from outside_names(value)
    elif isinstance(content, str):
        if _is_dotted(content) and not _is_inside(content) and _can_be_imported(content.split(".")[0]):
            yield content
        elif any(sign in content for sign in "{[:"):
            yield from outside_names(_nested(content))


def _is_dotted(text: str) -> bool:
    parts = text.strip().split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def _is_inside(path: str) -> bool:
    """Return whether a path names a class of this library or of Lightning, or a public function of this library."""
    # read from the source files: `ippo_lightning.cli.jobs.subprocess.Popen` begins like a path of this library too
    found = definition(path)
    if found is None or isinstance(found.node, ast.ClassDef):
        return found is not None
    # not any function: one that reads or writes a file could be given as a reward, with prompts as its paths
    return found.source.module.split(".")[0] == PACKAGE and found.name in short_names()


def _can_be_imported(top: str) -> bool:
    try:
        # the working folder too, which is not searched yet
        return find_spec(top) is not None or PathFinder.find_spec(top, [os.getcwd()]) is not None
    except (ImportError, ValueError, OSError):
        return True  # it exists in some form, so it is not left out


def _nested(text: str) -> Any:
    try:
        loaded = load_yaml(text, origin="")
    except UserError:
        return None
    return loaded if isinstance(loaded, (Mapping, list)) else None


def _remote_code(content: Any) -> bool:
    """Return whether a configuration turns on code that comes with a model, at any depth."""
    if isinstance(content, Mapping):
        return any(
            (str(key).rpartition(".")[2] == REMOTE_CODE and value not in (False, None, "false")) or _remote_code(value)
            for key, value in content.items()
        )
    if isinstance(content, str) and REMOTE_CODE in content:
        return _remote_code(_nested(content))
    return isinstance(content, (list, tuple)) and any(map(_remote_code, content))


def _command(given: Sequence[str], option: str) -> str:
    return f"ippo {shlex.join(given)} --{option}"


def _asked(config: RunConfig, named: Sequence[str]) -> bool:
    """Ask the user, if there is one at a terminal; a yes is remembered for this configuration."""
    # a rank of a run on several devices shares the terminal with the others
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or "LOCAL_RANK" in os.environ:
        return False
    shown = visible_text(f"{config.path} names code outside ippo-lightning: {', '.join(named)}.").replace("\n", " ")
    print(f"{shown}\nIt runs with your rights. Run it? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline()
    except OSError:
        return False
    if answer.strip().lower() not in ("y", "yes"):
        return False
    remember_run(config.text)
    return True
