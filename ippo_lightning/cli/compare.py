"""Columns x seeds from one shared start, each run a process of its own; then a table and a report."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ippo_lightning.cli.columns import Column, baseline_of, columns_of, is_featured
from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.experiment_paths import FOLDERS, find_file, part_of
from ippo_lightning.cli.jobs import Job, is_reusable, run_jobs
from ippo_lightning.cli.override_words import full_keys
from ippo_lightning.cli.quick_check import check_command
from ippo_lightning.cli.settings import CompareSettings
from ippo_lightning.cli.start_check import require_start
from ippo_lightning.cli.trust import check_trust
from ippo_lightning.errors import UserError
from ippo_lightning.storage.locks import hold
from ippo_lightning.storage.output_folders import make_writable, refuse_run_folder
from ippo_lightning.storage.public_yaml import public_yaml
from ippo_lightning.storage.run_folder import COMPARISON, RESULTS, RunFolder, seed_folder
from ippo_lightning.storage.untrusted_text import visible_text

if TYPE_CHECKING:
    from ippo_lightning.report.summary import Results

_PACKAGES = ("ippo-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes")


def run_comparison(settings: CompareSettings, *, command: str) -> Results:
    """Run what is not yet finished, write the report, print the table; return the content of `results.json`.

    Args:
        settings: see `CompareSettings`.
        command: how the user called it, for the report.

    Raises:
        UserError: a run failed, or an older one with other settings is in the way, or a comparison or run is under way
            in the folder; finished runs stay.
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP; the same command resumes where it stopped.
    """
    columns = columns_of(settings)
    root = Path(settings.run_dir)
    refuse_run_folder("run_dir", root)
    jobs = list(plan_jobs(settings, columns))
    for job in jobs:
        _check(job, root=root)
    make_writable("run_dir", root)
    lock = hold(root)
    if lock is None:
        raise UserError(f"run_dir: a comparison is under way in {root}; wait for it, stop it, or name another folder")
    try:
        return _run(settings, columns, jobs, command=command, root=root)
    finally:
        lock.release()


def _run(
    settings: CompareSettings, columns: Sequence[Column], jobs: Sequence[Job], *, command: str, root: Path
) -> Results:
    from ippo_lightning.report import results_table, write_report

    waiting = [job for job in jobs if not is_reusable(job, overwrite=settings.overwrite)]
    threads = settings.threads or _earlier(root, "threads") or max((os.cpu_count() or 1) // settings.jobs, 1)
    # before the runs: `ippo report` can then show a comparison under way
    describe(settings, columns, command=command, root=root, threads=threads)
    console = Console()
    if len(waiting) < len(jobs):
        console.print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already and kept.")
    run_jobs(waiting, num_parallel=settings.jobs, threads=threads)
    report = write_report(root)
    results: Results = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    console.print(results_table(results))
    console.print(visible_text(f"Report: {report}"), soft_wrap=True, markup=False)
    return results


def _check(job: Job, *, root: Path) -> None:
    """Refuse a run that certainly cannot start, before any other has run."""
    try:
        line = read_command_line(job.arguments)
        check_trust(line.run_configs, trust=line.trust, own_layers=line.own_layers, given=job.arguments)
        check_command(line)
        require_start(line, within=root)
    except UserError as error:
        raise UserError(f"{job.column}: {error}") from error


def plan_jobs(settings: CompareSettings, columns: Sequence[Column]) -> Iterator[Job]:
    """Yield one job per column and seed, all columns of a seed next to each other."""
    # by seed first: after an early stop, columns have seeds in common, and differences need such pairs
    for seed in settings.seeds:
        for column in columns:
            # all seeds share the start, so it is measured once
            if column.command == "evaluate" and seed != settings.seeds[0]:
                continue
            folder = seed_folder(Path(settings.run_dir), method=column.name, seed=seed)
            arguments = [column.command, *(word for path in column.config for word in ("--config", path))]
            # after the files, so that the comparison's seed and folder win
            arguments += ["--seed_everything", str(seed), "--loop.run_dir", str(folder)]
            chosen = {**full_keys(settings.overrides), **full_keys(column.overrides)}
            arguments += [f"--{key}={_as_word(value)}" for key, value in chosen.items()]
            if column.command == "evaluate":
                arguments += ["--output", str(folder / RESULTS)]
            else:
                # so that the same command continues the runs after Ctrl-C; the output goes to a log, which needs no bar
                arguments += ["--loop.resume", "true", "--loop.progress_bar", "false"]
            yield Job(
                column=column.name,
                seed=seed,
                folder=folder,
                arguments=tuple(arguments),
                fingerprint=_fingerprint(arguments, column),
            )


def _as_word(value: Any) -> str:
    """Spell a value as the command line reads it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _fingerprint(arguments: Sequence[str], column: Column) -> str:
    """Return a hash of the words and of the content of the files, so that an edited file makes another run."""
    contents = [(find_file(path) or Path(path)).read_bytes() for path in column.config]
    # a zero byte between the parts: without it, words that are cut elsewhere would give the same bytes
    return hashlib.sha256(b"\0".join([*(word.encode() for word in arguments), *contents])).hexdigest()


def _earlier(root: Path, name: str) -> int | None:
    """Return a number with which a comparison began or went on; None if there is none, or it does not tell."""
    try:
        found = json.loads((root / COMPARISON).read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def describe(settings: CompareSettings, columns: Sequence[Column], *, command: str, root: Path, threads: int) -> None:
    """Write `comparison.json`: what the report needs to know about the comparison."""
    content = {
        "methods": {
            column.name: {
                "title": column.title,
                "seeds": settings.seeds[:1] if column.command == "evaluate" else settings.seeds,
                "baseline": baseline_of(column, list(columns), baseline=settings.baseline),
                "featured": is_featured(column, featured=settings.featured),
            }
            for column in columns
        },
        "command": command,
        # the report finds the numbers of papers by them
        "axes": {column.name: axes_of(column) for column in columns},
        # Only shown, and so without keys and personal paths: whoever passes on a report may pass on this file, too.
        "config": public_yaml("\n".join(f"{column.name}: {json.dumps(_shown(column))}" for column in columns)),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {settings.jobs} runs at a time",
        # The most there ever were: runs that are finished keep the seconds that they took beside others.
        "jobs": max(settings.jobs, _earlier(root, "jobs") or 1),
        "threads": threads,
    }
    RunFolder(root).write(COMPARISON, content)


def axes_of(column: Column) -> dict[str, str]:
    """Return the names that the files of a column have on the axes, several of one axis joined by `+`.

    Args:
        column: one that only evaluates, or trains its base alone, has its own name as method.
    """
    stems: dict[str, list[str]] = {}
    for part in filter(None, (part_of(Path(path)) for path in column.config)):
        stems.setdefault(part.folder, []).append(part.stem)
    found = {axis: "+".join(stems[folder]) for axis, folder in FOLDERS.items() if folder in stems}
    return found if "method" in found and column.command == "fit" else {**found, "method": column.method}


def _shown(column: Column) -> dict[str, Any]:
    fields = asdict(column)
    return {name: fields[name] for name in ("title", "config", "overrides", "command")}
