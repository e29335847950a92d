"""Where experiments lie: in `experiments/` of the working directory, else in the installed package."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from ippo_lightning.cli.near_names import meant
from ippo_lightning.cli.yaml_text import load_yaml, read_text
from ippo_lightning.errors import UserError

ROOT = "experiments"
FOLDERS = {"base": "base", "task": "tasks", "model": "models", "method": "methods"}
"""Folder of each axis. The files apply in this order: a later one overrides an earlier one."""
DEFAULT_BASE = "ppo"
_ENDINGS = (".yaml", ".yml")
_MORE_FOLDERS = ("rewards", "grids")
_MOST_NAMED = 4


def packaged_root() -> Path:
    """Return the folder of the experiments that come with the package."""
    return Path(__file__).resolve().parents[1] / ROOT


def find_file(name: str) -> Path | None:
    """Return the path of a configuration file, or None if there is none.

    Args:
        name: a path, with or without `.yaml`. One that does not exist is looked up in `experiments/`, first in that of
            the working directory and then in that of the package: `experiments/base/ppo.yaml` and `base/ppo` are one.
    """
    given = Path(name)
    places = [given]
    if given.name and not given.is_absolute() and ".." not in given.parts:
        inside = Path(*given.parts[1:]) if given.parts[:1] == (ROOT,) else given
        places += [Path(ROOT) / inside, packaged_root() / inside]
    # all endings of one place first: the user's own file hides a packaged one
    for place in places:
        for path in (place, *(Path(f"{place}{ending}") for ending in _ENDINGS)):
            if path.is_file():
                return path
    return None


def near_file(name: str) -> str:
    """Return a hint at the file that is probably meant, or an empty text.

    Args:
        name: a path that is no file, with or without `.yaml`.
    """
    path = Path(name)
    if path.is_dir():
        inside = sorted(found.name for ending in _ENDINGS for found in path.glob(f"*{ending}"))[:_MOST_NAMED]
        return f"; it is a folder with {', '.join(inside)}" if inside else "; it is a folder without a YAML"
    wanted = name.removeprefix(f"{ROOT}/").removesuffix(".yaml").removesuffix(".yml")
    folder, _, stem = wanted.rpartition("/")
    known = _experiments()
    if folder and not name.startswith(f"{ROOT}/") and path.parent.is_dir():
        # in a folder of the user's own, the experiments of this library are not meant
        beside = sorted(str(found) for ending in _ENDINGS for found in path.parent.glob(f"*{ending}"))
        near = difflib.get_close_matches(name, beside, n=1, cutoff=0.6)
    elif folder:
        # of a folder that is none of ours, only a slip of the pen is near
        is_ours = folder in (*FOLDERS.values(), *_MORE_FOLDERS)
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6 if is_ours else 0.8)
    else:  # a name alone
        stems = [path.partition("/")[2] for path in known]
        found = difflib.get_close_matches(stem, stems, n=1, cutoff=0.8)
        near = [known[stems.index(found[0])]] if found else []
        # a file of the user's own is the likelier one
        beside = sorted(str(own) for ending in _ENDINGS for own in Path().glob(f"*{ending}"))
        near = difflib.get_close_matches(name, beside, n=1, cutoff=0.8) or near
    return f"; did you mean {near[0]}?" if near else ""


def _experiments() -> list[str]:
    paths = [path for root in (packaged_root(), Path(ROOT)) for path in root.glob("*/*.yaml")]
    # a grid last: of the same name there may be a task, which is what a run takes
    return sorted({f"{path.parent.name}/{path.stem}" for path in paths}, key=lambda name: (name[:6] == "grids/", name))


def packaged_path(name: str) -> Path | None:
    """Return the place of a path in the package, or None if the path does not begin with `experiments/`."""
    parts = Path(name).parts
    return packaged_root().joinpath(*parts[1:]) if parts[:1] == (ROOT,) else None


def with_packaged_paths(value: Any) -> Any:
    """Return a value of a YAML in which paths of `experiments/` that do not exist here point into the package."""
    if isinstance(value, dict):
        return {key: with_packaged_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_packaged_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(f"{ROOT}/") and not Path(value).exists():
        # only if the file is really there: any text of a YAML may begin with the same letters
        packaged = packaged_path(value)
        return str(packaged) if packaged is not None and packaged.exists() else value
    return value


def axis_names(axis: str) -> list[str]:
    """Return the names that an axis can take."""
    folders = (Path(ROOT, FOLDERS[axis]), packaged_root() / FOLDERS[axis])
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def axis_file(axis: str, name: str, *, base: str = DEFAULT_BASE) -> Path:
    """Return the file of one name of an axis.

    A folder with that name may contain a file for one base: `tasks/arithmetic/sft.yaml` takes the place of
    `tasks/arithmetic.yaml` in runs of `base/sft.yaml`, because another module trains with other settings. So does
    `my_task/sft.yaml` beside `my_task.yaml`.

    Args:
        axis: `base`, `task`, `model` or `method`.
        name: stem of a file in the folder of the axis, or the path of a YAML.
        base: stem of the run's base.

    Raises:
        UserError: there is no such file.
    """
    is_path = name.endswith(_ENDINGS)
    place = str(Path(name).with_suffix("")) if is_path else f"{ROOT}/{FOLDERS[axis]}/{name}"
    path = find_file(f"{place}/{base}.yaml") or find_file(name if is_path else f"{place}.yaml")
    if path is not None:
        return path
    where = "a file" if is_path else f"a file in {ROOT}/{FOLDERS[axis]}"
    raise UserError(f"{axis}: '{name}' is not {where}{meant(stem_of(name), axis_names(axis))}")


def base_of_task(task: str) -> str:
    """Return the stem of a task's base: the one with the module that the task names, or the usual one.

    Args:
        task: see `axis_file`.

    Raises:
        UserError: there is no such task, or its file cannot be read.
    """
    module = module_of(axis_file("task", task))
    if module is None:
        return DEFAULT_BASE
    return next((name for name in axis_names("base") if module_of(axis_file("base", name)) == module), DEFAULT_BASE)


def module_of(path: Path) -> str | None:
    """Return the `model.class_path` of a YAML; None if it names no module.

    Raises:
        UserError: it cannot be read.
    """
    content = load_yaml(read_text(path), origin=str(path))
    model = content.get("model") if isinstance(content, dict) else None
    name = model.get("class_path") if isinstance(model, dict) else None
    return name if isinstance(name, str) else None


def require_fitting_base(task: str, base: str) -> None:
    """Refuse a task with the base of another module: the parser would drop the settings of one of them.

    Args:
        task: see `axis_file`.
        base: stem of the base; one in a folder of the user's own is not checked.

    Raises:
        UserError: they name different modules.
    """
    if base not in axis_names("base"):
        return
    wanted = module_of(axis_file("task", task, base=base))
    found = module_of(axis_file("base", base))
    if wanted is not None and found is not None and wanted != found:
        raise UserError(
            f"base: '{base}' is for {found}, and the task '{task}' is for {wanted}; "
            f"leave --base out, or use --base {base_of_task(task)}"
        )


class Part(NamedTuple):
    """A part of a run's name."""

    folder: str
    """Of its axis, for example `tasks`."""
    stem: str


def part_of(path: Path) -> Part | None:
    """Return the part of a run's name that a file's own folder gives, or None if that folder is no axis."""
    place = path.resolve()
    if place.parent.parent.name in FOLDERS.values():  # the file for one base, in a folder with the name of the axis
        place = place.parent
    return Part(place.parent.name, stem_of(place.name)) if place.parent.name in FOLDERS.values() else None


def stem_of(name: str) -> str:
    """Return the name of an axis's file without its folder and `.yaml`; other dots stay, as in `qwen2.5-3b`."""
    name = Path(name).name
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


def derived_run_dir(parts: list[Part]) -> str | None:
    """Return `runs/<task>/<model>/<method>` of a run with these parts, or None if neither task nor method is named.

    Args:
        parts: in the order of the files. One that is missing is left out. Without a method the base takes its place;
            a base other than the usual one stands before the method.
    """
    stems: dict[str, list[str]] = {}
    for part in parts:
        stems.setdefault(part.folder, []).append(part.stem)
    if not stems.keys() & {FOLDERS["task"], FOLDERS["method"]}:
        return None
    base, methods = stems.get(FOLDERS["base"], []), stems.get(FOLDERS["method"], [])
    last = [*(base if base != [DEFAULT_BASE] else []), *methods] or base or ["run"]
    found = ["+".join(stems[FOLDERS[axis]]) for axis in ("task", "model") if FOLDERS[axis] in stems]
    return "/".join(["runs", *found, "+".join(last)])
