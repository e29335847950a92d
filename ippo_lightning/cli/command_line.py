"""The words of a command before the parser reads them: short forms become files, files become text.

`ippo fit --task arithmetic --method ippo` becomes a list of YAML files, which are read here, as UTF-8 in every locale.
The parser gets their content with short class names spelt out.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ippo_lightning.cli.axis_values import is_model_file, names_of, order_of, part_named
from ippo_lightning.cli.experiment_paths import (
    DEFAULT_BASE,
    FOLDERS,
    ROOT,
    Part,
    axis_file,
    axis_names,
    base_of_task,
    derived_run_dir,
    find_file,
    near_file,
    part_of,
    require_fitting_base,
    with_packaged_paths,
)
from ippo_lightning.cli.short_names import expand_names, full_path, is_function, short_names
from ippo_lightning.cli.start_of_run import start_layer
from ippo_lightning.cli.trust import RunConfig, Trust, is_run_config, run_config, without_trust
from ippo_lightning.cli.yaml_text import dump_yaml, load_yaml, read_text
from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import CONFIG, RunFolder

EXPERIMENT_COMMANDS = ("fit", "evaluate")
# without this list, the word after such an option would be taken for its value
_NO_VALUE = ("help", "-h", "print_config")
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
    """

    words: list[str]
    layers: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    parts: list[Part | None] = field(default_factory=list)
    unnamed: list[dict[str, Any]] = field(default_factory=list)
    run_configs: list[RunConfig] = field(default_factory=list)
    trust: Trust = field(default_factory=Trust)

    @property
    def own_layers(self) -> list[dict[str, Any]]:
        """The layers that come from the user's own files and words."""
        strange = {id(config.content) for config in self.run_configs}
        return [layer for layer in self.layers if id(layer) not in strange]


@dataclass(frozen=True)
class Option:
    """One option: its name without dashes, its value if it has one, and the words it was given by."""

    name: str
    value: str | None
    words: tuple[str, ...]
    part: Part | None = None
    """The part of the run's name, for a file that an axis has named."""


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
    found = list(_options(words[1:]))
    line = CommandLine(words=[words[0]], trust=trust)
    if words[0] in EXPERIMENT_COMMANDS:
        # `compare` has axes too, but as settings of its own
        found = _with_axes_as_files(found)
    for option in found:
        if option.name == "config" and option.value is not None:
            _add_file(line, option.value, option.part, run_folder)
        else:
            _add_option(line, option)
    # only at the end: any file or word may name the folder, and then none is derived
    if words[0] in EXPERIMENT_COMMANDS:
        _add_start(line)
        _add_run_dir(line)
    return line


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
    others = [option.name for option in _options([*words[1:place], *words[place + 2 :]]) if _is_axis(option)]
    if others:
        raise UserError(f"resume: --{others[0]} cannot be combined with --resume; the run's {CONFIG} names its files")
    if not RunFolder(folder).has_checkpoint():
        raise UserError(
            f"resume: {folder} has no checkpoint; to begin the run again, use `ippo fit --config {folder / CONFIG} "
            f"--loop.run_dir {folder} --loop.overwrite true`"
        )
    # the folder itself, because the configuration names the old place if the run was moved
    given = ["--config", str(folder / CONFIG), "--loop.run_dir", str(folder)]
    # the user's words come last and so override the configuration of the run
    return ["fit", *given, "--loop.resume", "true", "--loop.overwrite", "false", *words[1:place], *words[place + 2 :]]


def _options(words: Sequence[str]) -> Iterator[Option]:
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in _NO_VALUE or name.endswith(".help"):
            yield Option(name="", value=None, words=(word,))
        elif equals:
            yield Option(name=name, value=value, words=(word,))
        # one dash begins no option here: -1 is a value
        elif waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
            yield Option(name=name, value=value, words=(word, value))
        else:
            yield Option(name=name, value=None, words=(word,))


def _with_axes_as_files(found: list[Option]) -> list[Option]:
    """Return the options with those of an axis as `--config` files.

    Base, task and model come first, because they make up the run. A method stays where it was given, so that files
    and words after it override it, and it overrides those before it.
    """
    first: dict[str, list[Option]] = {"base": [], "task": [], "model": []}
    rest: list[Option] = []
    # before the loop: the file of a task depends on the base, which may be named after it
    base = _base_of(found)
    tasks = [option.value for option in found if option.name == "task" and option.value]
    for option in found:
        if option.name in FOLDERS and not option.value:
            known = ", ".join(axis_names(option.name))
            raise UserError(f"{option.name}: no value given; expected --{option.name} NAME, one of {known}")
        if not _is_axis(option):
            _check_model_name(option)
            rest.append(option)
            continue
        for name in names_of(option.name, option.value or ""):
            chosen = _file_option(axis_file(option.name, name, base=base or DEFAULT_BASE), axis=option.name, name=name)
            first.get(option.name, rest).append(chosen)
    methods = [option for option in rest if option.part is not None]
    for axis, options in {**first, "method": methods}.items():
        places = order_of(axis, [Path(option.value or "") for option in options])
        first[axis] = [options[place] for place in places]  # that of methods is not read: they stay where they are
    # a task sets arguments and names no module, so it needs a base; other files may be complete without one
    if tasks and base is None:
        # Whatever base it is, it is the usual one of the task, and the name of the run leaves it out.
        first["base"] = [_file_option(axis_file("base", base_of_task(tasks[0])), axis="base", name=DEFAULT_BASE)]
    for task in tasks if base else ():
        require_fitting_base(task, str(base))
    return [*first["base"], *first["task"], *first["model"], *rest]


def _base_of(found: list[Option]) -> str | None:
    """Return the name of the run's base, or None if no option gives one."""
    for option in found:
        path = Path(option.value or "")
        if option.name == "base" or (option.name == "config" and path.parent.name == FOLDERS["base"]):
            return path.stem
    return None


def _is_axis(option: Option) -> bool:
    """Return whether an option names a file of an axis; `--model` may name a class instead."""
    is_class = option.name == "model" and option.value is not None and not is_model_file(option.value)
    return option.name in FOLDERS and not is_class


def _check_model_name(option: Option) -> None:
    """Refuse a word that resembles a file of the model axis; any other word may be a class that the parser knows."""
    name = option.value or ""
    # an existing path passes, because the parser reads an object from a file
    if option.name != "model" or name in short_names() or not name.isidentifier() or Path(name).exists():
        return
    near = difflib.get_close_matches(name, axis_names("model"), n=1, cutoff=0.6)
    if near:
        place = f"{ROOT}/{FOLDERS['model']}"
        raise UserError(f"model: '{name}' is neither a file in {place} nor a class; did you mean '{near[0]}'?")


def _file_option(path: Path, *, axis: str, name: str) -> Option:
    # the option says which axis a user's own file belongs to, wherever the file lies
    part = part_named(axis, name)
    return Option(name="config", value=str(path), words=("--config", str(path)), part=part)


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
    loaded = _loaded(expanded)
    line.layers.append({option.name: loaded})
    if _contains_null(loaded) and ".init_args." in option.name:
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


def _contains_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_contains_null(part) for part in value.values())
    return any(_contains_null(part) for part in value) if isinstance(value, list) else value is None


def _expanded(name: str, value: str) -> str:
    """Return the value of a dotted key with short class names spelt out."""
    if value.lstrip().startswith(("{", "[")):
        loaded = _loaded(value)
        full = expand_names(loaded, is_argument=".init_args" in name)
        return value if full == loaded else json.dumps(full)
    # elsewhere a text may equal a short name by chance, for example the name of a folder
    is_object = name in _OBJECT_KEYS or name.endswith("class_path")
    is_short = value in short_names() and (is_object or (".init_args." in name and is_function(value)))
    return full_path(value) if is_short else value


def _loaded(word: str) -> Any:
    """Return the value of a word, which may be any text and need not be YAML."""
    try:
        return load_yaml(word, origin="")
    except UserError:
        return word


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
