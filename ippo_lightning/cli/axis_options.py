"""Options of a command, and those of the axes: `--task arithmetic --method ippo` names YAML files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ippo_lightning.cli.axis_values import is_model_file, names_of, order_of, part_named
from ippo_lightning.cli.experiment_paths import (
    DEFAULT_BASE,
    FOLDERS,
    ROOT,
    Part,
    axis_file,
    axis_names,
    base_of_task,
    require_fitting_base,
)
from ippo_lightning.cli.near_names import is_part_of, meant
from ippo_lightning.cli.short_names import short_names
from ippo_lightning.errors import UserError

# without this list, the word after such an option would be taken for its value
_NO_VALUE = ("help", "-h", "print_config")


@dataclass(frozen=True)
class Option:
    """One option: its name without dashes, its value if it has one, and the words it was given by."""

    name: str
    value: str | None
    words: tuple[str, ...]
    part: Part | None = None
    """The part of the run's name, for a file that an axis has named."""


def options_of(words: Sequence[str]) -> Iterator[Option]:
    """Yield the options of a command, and each other word as one without a name.

    Args:
        words: of the command line, without the command.
    """
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


def with_axes_as_files(found: list[Option]) -> list[Option]:
    """Return the options with those of an axis as `--config` files.

    Base, task and model come first, because they make up the run. A method stays where it was given among the
    files, so that those after it override it, and it overrides those before it.
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
        if not is_axis(option):
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


def files_first(found: Sequence[Option]) -> list[Option]:
    """Return the options with the files before all others, each group in its own order: a key overrides any file.

    Args:
        found: the options of a command, those of an axis as files already.
    """
    is_file = [option.name == "config" and option.value is not None for option in found]
    files = [option for option, moves in zip(found, is_file, strict=True) if moves]
    return [*files, *(option for option, moves in zip(found, is_file, strict=True) if not moves)]


def _base_of(found: list[Option]) -> str | None:
    """Return the name of the run's base, or None if no option gives one."""
    for option in found:
        path = Path(option.value or "")
        if option.name == "base" or (option.name == "config" and path.parent.name == FOLDERS["base"]):
            return path.stem
    return None


def is_axis(option: Option) -> bool:
    """Return whether an option names a file of an axis; `--model` may name a class instead."""
    is_class = option.name == "model" and option.value is not None and not is_model_file(option.value)
    return option.name in FOLDERS and not is_class


def _check_model_name(option: Option) -> None:
    """Refuse a word that is no class, or resembles a file of the model axis; the parser knows the classes there are."""
    name = option.value or ""
    # an existing file passes, because the parser reads an object from it, or from the text of a YAML
    if option.name != "model" or name in short_names() or name.lstrip().startswith("{") or Path(name).is_file():
        return
    known = axis_names("model")
    parts = name.split(".")
    is_class = all(part.isidentifier() for part in parts) and (len(parts) > 1 or not is_part_of(name, known))
    if is_class and not Path(name).is_dir():
        return
    place = f"{ROOT}/{FOLDERS['model']}"
    is_pretrained = name.count("/") == 1 or Path(name).is_dir()
    hub = f"; for a model of the Hub or in a folder: --model.policy.pretrained {name}" if is_pretrained else ""
    raise UserError(f"model: '{name}' is neither a file in {place} nor a class{hub}{meant(name, known)}")


def _file_option(path: Path, *, axis: str, name: str) -> Option:
    # the option says which axis a user's own file belongs to, wherever the file lies
    part = part_named(axis, name)
    return Option(name="config", value=str(path), words=("--config", str(path)), part=part)
