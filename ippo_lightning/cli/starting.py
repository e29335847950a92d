"""`ippo init`: the files that a project begins with. They run as they are, and their comments say what to change."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ippo_lightning.cli.axis_values import axis_files
from ippo_lightning.cli.experiment_paths import DEFAULT_BASE, FOLDERS, Part, base_of_task, derived_run_dir, part_of
from ippo_lightning.cli.quick_check import merged
from ippo_lightning.cli.start_of_run import start_layer
from ippo_lightning.cli.yaml_text import load_yaml, read_text
from ippo_lightning.errors import UserError
from ippo_lightning.tasks import ArithmeticTask

STARTER = Path(__file__).resolve().parent / "starter"
EXPERIMENT, SFT, REWARD, DATA = "experiment.yaml", "sft.yaml", "my_reward.py", "problems.jsonl"
_NUM_PROBLEMS = 480


def start_project(folder: Path, files: list[Path]) -> list[str]:
    """Write the files of a project; return their names.

    Args:
        folder: created if missing.
        files: of an experiment by axes, in their order; none for the example that comes with data and a reward.

    Raises:
        UserError: a file exists already, or the folder cannot be written; nothing is written then.
    """
    contents = {EXPERIMENT: written_out(files)} if files else _example()
    for name in contents:
        if (folder / name).exists() or (folder / name).is_symlink():
            raise UserError(f"init: {folder / name} exists, and is not replaced; name another folder, or move the file")
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            # "x", so that a file which somebody else writes meanwhile is not replaced either
            with (folder / name).open("x", encoding="utf-8", newline="\n") as file:
                written.append(folder / name)
                file.write(text)
    except OSError as error:
        # The next call would refuse half a project.
        for path in written:
            path.unlink(missing_ok=True)
        raise UserError(f"init: {folder} cannot be written ({error.strerror}); name another folder") from error
    return list(contents)


def _example() -> dict[str, str]:
    return {
        EXPERIMENT: (STARTER / EXPERIMENT).read_text(encoding="utf-8"),
        SFT: (STARTER / SFT).read_text(encoding="utf-8"),
        # not a module of this package, so its name does not end in .py there
        REWARD: (STARTER / f"{REWARD}.txt").read_text(encoding="utf-8"),
        DATA: "".join(json.dumps(row) + "\n" for row in example_rows()),
    }


def example_rows() -> list[dict[str, Any]]:
    """Return the rows of the data example: sums as the packaged model has learnt them, in columns of their own."""
    task = ArithmeticTask(
        max_terms=3,
        unfaithful_fraction=0.0,
        num_train=_NUM_PROBLEMS,
        num_validation=0,
        num_test=0,
        num_influence_demonstrations=0,
    )
    return [
        {
            "id": number,
            "topic": "differences" if "-" in row["prompt"] else "sums",
            "problem": row["prompt"],
            "worked": row["response"],
            "result": int(row["example"]["answer"]),
        }
        for number, row in enumerate(task.rows("demonstrations"))
    ]


def written_out(files: list[Path]) -> str:
    """Return the YAML files of an experiment as one, that runs alone and can be edited.

    Args:
        files: in their order; a later one overrides an earlier one.

    Raises:
        UserError: a file is no YAML.
    """
    import yaml

    settings: Mapping[str, Any] = {}
    comments: list[str] = []
    for path in files:
        text = read_text(path)
        content = load_yaml(text, origin=str(path))
        settings = merged(settings, content if isinstance(content, Mapping) else {})
        comments += ["#", f"# {'/'.join(path.parts[-2:])}", *_header(text)]
    parts = [_usual(part, files) for path in files if (part := part_of(path)) is not None]
    settings = merged(settings, start_layer([settings], parts, unnamed=()) or {})
    run_dir = derived_run_dir(parts)
    if run_dir is not None:
        settings = merged({"loop": {"run_dir": run_dir}}, settings)
    lines = ["# An experiment by axes, written out as one file, in which every value can be changed:"]
    lines += [f"#   ippo fit --config {EXPERIMENT}", "# All settings with their values: --print_config"]
    lines += ["# It was made of these files; their comments:", *comments]
    return "\n".join(lines) + "\n" + yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=100)


def _usual(part: Part, files: list[Path]) -> Part:
    """Return the part of a run's name as `ippo fit` names it: the usual base of a task has one name, whatever it is."""
    tasks = [str(path) for path in files if path.parent.name == FOLDERS["task"]]
    is_usual = part.folder == FOLDERS["base"] and bool(tasks) and part.stem == base_of_task(tasks[0])
    return Part(part.folder, DEFAULT_BASE) if is_usual else part


def next_steps(folder: Path, names: list[str]) -> str:
    """Return what `ippo init` prints: the files, and what to do with them.

    Args:
        folder: of the project.
        names: of its files.
    """
    steps = [f"cd {shlex.quote(str(folder))}"] if folder.resolve() != Path.cwd() else []
    steps += [f"ippo fit --config {EXPERIMENT}", *(["ippo report runs/ippo"] if DATA in names else [])]
    what = "data, reward and model" if DATA in names else "project"
    lines = [f"Written to {folder}: {', '.join(names)}", "Run it:", *(f"  {step}" for step in steps)]
    if SFT in names:
        lines.append(f"{SFT} is for a model of your own that does not answer in the form that the grader reads: run")
        lines.append(f"`ippo fit --config {SFT}` first. The model of {EXPERIMENT} needs no SFT.")
    return "\n".join([*lines, f"Then change it for your own {what}, as its comments tell."])


def _header(text: str) -> list[str]:
    """Return the comment at the beginning of a YAML."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return lines


def found_files(options: Mapping[str, str | None]) -> list[Path]:
    """Return the files of an experiment by axes, in the order in which they apply; none if no axis is given.

    Args:
        options: name of each axis that is given.

    Raises:
        UserError: there is no such file.
    """
    given = {axis: name for axis, name in options.items() if name is not None}
    if not given:
        return []
    chosen = {"base": base_of_task(given["task"]) if "task" in given else DEFAULT_BASE, **given}
    base = Path(chosen["base"]).stem
    return [path for axis in FOLDERS if axis in chosen for path in axis_files(axis, chosen[axis], base=base)]
