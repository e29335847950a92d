"""The words of a command before the parser reads them: short forms become files, files become text.

`ippo fit --task arithmetic --method ippo` becomes a list of YAML files, which are read here, as UTF-8 in every locale.
The parser gets their content with short class names spelt out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ippo_lightning.cli.axis_options import Option, files_first, is_axis, options_of, with_axes_as_files
from ippo_lightning.cli.experiment_paths import (
    Part,
    derived_run_dir,
    find_file,
    near_file,
    part_of,
    with_packaged_paths,
)
from ippo_lightning.cli.override_words import is_override, override_texts, with_texts
from ippo_lightning.cli.short_names import expand_names, full_path, is_function, short_names
from ippo_lightning.cli.start_of_run import start_layer
from ippo_lightning.cli.trust import RunConfig, Trust, is_run_config, run_config, without_trust
from ippo_lightning.cli.usage_hints import require_option, require_yaml_of
from ippo_lightning.cli.yaml_text import contains_null, dump_yaml, load_yaml, loaded_word, read_text
from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import CONFIG, RunFolder

EXPERIMENT_COMMANDS = ("fit", "evaluate")
_OBJECT_KEYS = ("model", "data", "callbacks", "callbacks+", "fabric.loggers")


@dataclass
class CommandLine:
    """A command, ready for the parser.

    Args:
        words: what the parser reads.
        layers: the configurations and dotted words in their order, as nested dictionaries.
        files: the YAML files, in their order.
        parts: for each file, the part of the run's name that its option or its folder gives, or None.
        unnamed: the layers of files without such a part.
        run_configs: those of the files that lie in the folder of a run, see `trust.py`.
        trust: what the words allow such a file.
        overrides: those of `ippo compare` that are words, by their full keys; the parser reads the others.
    """

    words: list[str]
    layers: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    parts: list[Part | None] = field(default_factory=list)
    unnamed: list[dict[str, Any]] = field(default_factory=list)
    run_configs: list[RunConfig] = field(default_factory=list)
    trust: Trust = field(default_factory=Trust)
    overrides: dict[str, str] = field(default_factory=dict)

    @property
    def own_layers(self) -> list[dict[str, Any]]:
        """The layers that come from the user's own files and words."""
        strange = {id(config.content) for config in self.run_configs}
        return [layer for layer in self.layers if id(layer) not in strange]


def read_command_line(words: Sequence[str], *, run_folder: Path | None = None) -> CommandLine:
    """Return the command with its files read.

    Args:
        words: of the command line, the command first.
        run_folder: of a run whose configuration is among the files, whatever else the folder contains.

    Raises:
        UserError: a file is missing or is not a YAML of keys and values.
    """
    words, trust = without_trust(words)
    run_folder = run_folder or _resumed_folder(words)
    words = with_resume(words)
    if not words:
        return CommandLine(words=[])
    found = list(options_of(words[1:]))
    line = CommandLine(words=[words[0]], trust=trust)
    if words[0] in EXPERIMENT_COMMANDS:
        _require_options(words[0], found)
        # `compare` has axes too, but as settings of its own
        found = with_axes_as_files(found)
    overrides: list[Option] = []
    # wherever a key stands, no file overrides it
    for option in files_first(found):
        if option.name == "config" and option.value is not None:
            _add_file(line, option.value, option.part, run_folder)
        elif words[0] == "compare" and is_override(option):
            line.layers.append({option.name: loaded_word(str(option.value))})
            overrides.append(option)
        else:
            _add_option(line, option)
    line.overrides = override_texts(overrides)
    if overrides and any(word.startswith("--print_config") for word in words):
        # what is printed comes from the parser, which otherwise does not get them
        line.words += ["--config", dump_yaml({"overrides": with_texts(_newest_overrides(line.layers), line.overrides)})]
    # only at the end: any file or word may name the folder, and then none is derived
    if words[0] in EXPERIMENT_COMMANDS:
        _add_start(line)
        _add_run_dir(line)
    return line


def _newest_overrides(layers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    found = [layer["overrides"] for layer in layers if isinstance(layer.get("overrides"), Mapping)]
    return found[-1] if found else {}


def with_resume(words: Sequence[str]) -> list[str]:
    """Return the words with `--resume DIR` spelt out: the configuration of that run, its folder, and to resume it.

    Raises:
        UserError: the folder contains no run, or no checkpoint to go on from.
    """
    # both ways to write the option become two words, so that one case is left
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    if words[:1] != ["fit"] or "--resume" not in words:
        return words
    place = words.index("--resume")
    value = next(iter(words[place + 1 :]), "")
    if not value or value.startswith("--"):
        raise UserError("resume: no value given; expected --resume DIR, the folder of a run of `ippo fit`")
    folder = Path(value)
    if not (folder / CONFIG).is_file():
        raise UserError(f"resume: {folder} has no {CONFIG}; expected the folder of a run of `ippo fit`")
    others = [option.name for option in options_of([*words[1:place], *words[place + 2 :]]) if is_axis(option)]
    if others:
        raise UserError(f"resume: --{others[0]} cannot be combined with --resume; the run's {CONFIG} names its files")
    if not RunFolder(folder).has_checkpoint():
        raise UserError(
            f"resume: {folder} has no checkpoint; to begin the run again, use `ippo fit --config {folder / CONFIG} "
            f"--loop.run_dir {folder} --loop.overwrite true`"
        )
    # the folder itself, because the configuration names the old place if the run was moved
    given = ["--config", str(folder / CONFIG), "--loop.run_dir", str(folder)]
    # the user's words come last and so override the keys given here; files come before any key
    return ["fit", *given, "--loop.resume", "true", "--loop.overwrite", "false", *words[1:place], *words[place + 2 :]]


def _require_options(command: str, found: Sequence[Option]) -> None:
    stray = [option.words[0] for option in found if not option.name and option.value is None]
    # beside --help and the like, a word may be the class that is asked about
    if not any(word.startswith("-") for word in stray):
        for word in stray[:1]:
            require_option(command, word)


def _resumed_folder(words: Sequence[str]) -> Path | None:
    spelt = [part for word in words for part in word.split("=", 1)]
    return Path(spelt[spelt.index("--resume") + 1]) if "--resume" in spelt[:-1] else None


def _add_file(line: CommandLine, name: str, part: Part | None, run_folder: Path | None) -> None:
    # as in jsonargparse, the value may be the YAML text itself
    path = find_file(name)
    if path is None and not _is_inline(name):
        raise UserError(f"config: {name} is not a file; expected a YAML of `ippo {line.words[0]}`{near_file(name)}")
    text = name if path is None else read_text(path)
    content = load_yaml(text, origin=name if path is not None else "config")
    # a file of comments alone is empty and no error
    if content is None:
        return
    if not isinstance(content, dict):
        raise UserError(f"config: {name} contains no keys and values; expected a YAML of `ippo {line.words[0]}`")
    if path is not None:
        require_yaml_of(line.words[0], content, name)
        line.files.append(path)
        line.parts.append(part or part_of(path))
    # names are spelt out here, because the parser knows only the classes that are imported already
    content = with_packaged_paths(expand_names(content))
    # by its place, or because the command names the folder: of a run, whatever else has been removed from it
    is_of_run = path is not None and (is_run_config(path) or (run_folder is not None and path == run_folder / CONFIG))
    if path is not None and is_of_run and line.words[0] in EXPERIMENT_COMMANDS:
        line.run_configs.append(run_config(path, text, content))
    line.layers.append(content)
    if path is not None and line.parts[-1] is None:
        line.unnamed.append(content)
    line.words += ["--config", dump_yaml(content)]


def _is_inline(text: str) -> bool:
    return "\n" in text or text.lstrip().startswith("{")


def _add_option(line: CommandLine, option: Option) -> None:
    value = option.value
    if not option.name or value is None:
        line.words += option.words
        return
    expanded = _expanded(option.name, value)
    loaded = loaded_word(expanded)
    line.layers.append({option.name: loaded})
    if contains_null(loaded) and ".init_args." in option.name:
        line.words += _words_with_null(option.name, expanded, loaded)
    else:
        line.words += option.words if expanded == value else [f"--{option.name}={expanded}"]


def _words_with_null(name: str, value: str, loaded: Any) -> list[str]:
    """Return words in which null stays null below an argument: the parser hands a word on as text, there `None`.

    Raises:
        UserError: the key is below an argument of one object of a list, which no file can address alone.
    """
    first, *keys = name.split(".")
    if first in ("model", "data"):
        for key in reversed(keys):
            loaded = {key: loaded}
        return ["--config", dump_yaml({first: loaded})]
    if loaded is not None or "." in name.partition(".init_args.")[2]:
        raise UserError(f"{name}: null is not read correctly here on the command line; write this key in a YAML")
    return [f"--{name}={value}"]


def _expanded(name: str, value: str) -> str:
    """Return the value of a dotted key with short class names spelt out."""
    if value.lstrip().startswith(("{", "[")):
        loaded = loaded_word(value)
        full = expand_names(loaded, is_argument=".init_args" in name)
        return value if full == loaded else json.dumps(full)
    # elsewhere a text may equal a short name by chance, for example the name of a folder
    is_object = name in _OBJECT_KEYS or name.endswith("class_path")
    is_short = value in short_names() and (is_object or (".init_args." in name and is_function(value)))
    return full_path(value) if is_short else value


def _add_start(line: CommandLine) -> None:
    """Name the run that the policy starts from, if the files leave that to the names of the axes."""
    layer = start_layer(line.layers, [part for part in line.parts if part is not None], unnamed=line.unnamed)
    if layer is not None:
        line.words += ["--config", dump_yaml(layer)]
        line.layers.append(layer)


def _add_run_dir(line: CommandLine) -> None:
    """Derive the run's folder from the files that make it up, unless something names one."""
    if any(_names_run_dir(layer) for layer in line.layers):
        return
    run_dir = derived_run_dir([part for part in line.parts if part is not None])
    if run_dir is not None:
        line.words += ["--loop.run_dir", run_dir]
        line.layers.append({"loop.run_dir": run_dir})


def _names_run_dir(layer: Mapping[str, Any]) -> bool:
    # a layer from a file is nested, one from a word has a dotted key
    loop = layer.get("loop")
    return "loop.run_dir" in layer or (isinstance(loop, Mapping) and "run_dir" in loop)
