"""Help that needs no heavy import: of `ippo` itself, and of the classes a YAML can name."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence

import ippo_lightning
from ippo_lightning.cli.short_names import full_path, short_names
from ippo_lightning.cli.simple_types import options
from ippo_lightning.cli.sources import Definition, Source, definition, is_a, signature
from ippo_lightning.cli.usage_hints import require_command_first, unknown_command
from ippo_lightning.errors import UserError

COMMANDS = {
    "init": "write a commented YAML, a reward and data to begin with, which run",
    "experiments": "list what there is to run, with the question of each",
    "fit": "train: SFT, PPO or I-PPO, as the YAML states",
    "evaluate": "measure runs, or a policy, on the validation or test problems",
    "compare": "methods x seeds from one start, then a table and a report",
    "export": "write a run's model for transformers, PEFT and vLLM",
    "replay": "repeat a step that was not finite, and show where it breaks",
    "diagnose": "show which records of an iteration worked against the target, and why",
    "trace": "show how a behaviour was learned, from which records, over iterations",
    "intervene": "train an iteration again without its negative records, and compare",
    "report": "write the report of one run, or of several side by side",
}
# names and not classes: an import of Lightning's classes takes seconds
KINDS = {"model": "BaseModule", "data": "LightningDataModule", "callbacks": "Callback"}
"""Base class of what each section takes."""
_WIDTH = 80
_ARGUMENT = re.compile(r"^(\w+): (.*)$")


def light_answer(words: Sequence[str]) -> str | None:
    """Return the answer to words that need no parser, or None if the command has to be parsed.

    Raises:
        UserError: the command is unknown, or is not the first word.
    """
    if not words or words[0] in ("-h", "--help"):
        return overview()
    if words[0] == "--version":
        return f"ippo {ippo_lightning.__version__}"
    # --print_completion needs the full parser
    if words[0].startswith("-"):
        require_command_first(words, COMMANDS)
        return None
    if words[0] not in COMMANDS:
        raise unknown_command(words[0], COMMANDS)
    # the parser answers these options too, but after heavy imports
    for place, word in enumerate(words):
        section = word.removeprefix("--").partition("=")[0].removesuffix(".help")
        if word.startswith("--") and section in KINDS and word.partition("=")[0].endswith(".help"):
            given = word.partition("=")[2] or next(iter(words[place + 1 : place + 2]), "")
            # the word after the option may be another option
            return class_help(section, given if not given.startswith("-") else "")
    return None


def overview() -> str:
    """Return what `ippo --help` prints."""
    lines = ["usage: ippo {" + ",".join(COMMANDS) + "} ...", "", str(ippo_lightning.__doc__).splitlines()[0], ""]
    lines += ["commands:", *(_entry(name, text) for name, text in COMMANDS.items()), ""]
    lines += ["options:", _entry("-h, --help", "print this help"), _entry("--version", "print the version")]
    lines += [_entry("--print_completion SHELL", "print a completion script, for example for shtab-bash"), ""]
    lines += ["`ippo COMMAND --help` lists the options of one command."]
    return "\n".join(lines)


def class_help(section: str, name: str) -> str | None:
    """Return the classes that a section takes, or the arguments of one; None for a class of another library.

    Args:
        section: `model`, `data` or `callbacks`.
        name: a class of this library, short or as a dotted path; empty for a list of all.

    Raises:
        UserError: the name is not a class of this library.
    """
    known = [short for short in short_names() if _is_kind(full_path(short), KINDS[section])]
    if not name:
        lines = [f"Classes for `{section}`, by their short names:", ""]
        for short in known:
            found = definition(full_path(short))
            lines.append(_entry(short, _docstring(found).split("\n")[0] if found else ""))
        return "\n".join([*lines, "", f"`--{section}.help NAME` lists the arguments of one."])
    path = full_path(name)
    found = definition(path)
    # of a class of another library only an import tells the arguments; the parser does that
    if found is None and "." in path:
        return None
    if found is None:
        raise UserError(f"{section}.help: there is no class {name}; expected one of {', '.join(known)}")
    return _arguments(path, found)


def _is_kind(path: str, base: str) -> bool:
    found = definition(path)
    return found is not None and isinstance(found.node, ast.ClassDef) and is_a(found, base)


def _arguments(path: str, found: Definition) -> str:
    described = _described(_docstring(found))
    lines = [f"class_path: {path}", "", _docstring(found).split("\n")[0], "", "init_args:"]
    for parameter in signature(found).parameters.values():
        kind = _kind(parameter.annotation, parameter.source) if parameter.annotation is not None else "any"
        default = f"default: {parameter.default}" if parameter.default is not None else "required"
        text = f"{described.get(parameter.name, '')} ({kind}; {default})".strip()
        lines.append(_entry(parameter.name, text))
    return "\n".join(lines)


def _kind(annotation: ast.expr, source: Source) -> str:
    """Return a type as text, with the choices of a Literal in place of its name."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return f"{_kind(annotation.left, source)} | {_kind(annotation.right, source)}"
    # the name of an alias, such as `OptimizerKind`, does not tell a reader what to write
    alternatives = options(annotation, source)
    if all(option.kind == "choice" for option in alternatives):
        return " | ".join(repr(choice) for option in alternatives for choice in option.choices)
    return ast.unparse(annotation)


def _docstring(found: Definition) -> str:
    return (ast.get_docstring(found.node) or "") if isinstance(found.node, (ast.ClassDef, ast.FunctionDef)) else ""


def _described(docstring: str) -> dict[str, str]:
    """Return the text of each argument in the `Args:` part of a docstring."""
    _, _, part = docstring.partition("Args:\n")
    described: dict[str, str] = {}
    last = ""
    for line in part.splitlines():
        # a blank line ends the arguments; sections such as `Raises:` follow it
        if not line.startswith("    "):
            break
        match = _ARGUMENT.match(line[4:])
        if match:
            last = match[1]
            described[last] = match[2]
        elif last:
            described[last] += " " + line.strip()
    return described


def _entry(name: str, text: str) -> str:
    indent = " " * 26
    first = f"  {name:<24}" if len(name) < 24 else f"  {name}\n{indent}"
    return first + textwrap.fill(text, width=_WIDTH - 26).replace("\n", f"\n{indent}")
