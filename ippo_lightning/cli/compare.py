"""Methods x seeds from one shared start, each run a process of its own; then a table and a page."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ippo_lightning.errors import UserError
from ippo_lightning.report import results_table, write_report
from ippo_lightning.storage.run_folder import COMPARISON, FINGERPRINT, HISTORY, LOG, RESULTS, seed_folder

_PACKAGES = ("ippo-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes")


@dataclass(kw_only=True)
class MethodSettings:
    """One column of a comparison.

    Args:
        title: as the table shows it.
        config: YAML files of `ippo fit`, later ones win.
        overrides: dotted keys and values on top of them.
        command: `fit` trains; `evaluate` only measures where all the others start, once.
    """

    title: str = ""
    config: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    command: Literal["fit", "evaluate"] = "fit"


@dataclass(kw_only=True)
class CompareSettings:
    """What `ippo compare` runs.

    Args:
        run_dir: everything is written in here: `<method>/seed_<n>/`, `results.json`, `report.html`.
        methods: by name.
        baseline: name of the method that all others are compared with; null for no comparison.
        featured: name of the method that the report's headline is about; null for the first one.
        seeds: every method runs once with each.
        overrides: dotted keys and values for all methods.
        jobs: runs at a time; the processor's cores are shared out among them.
        overwrite: do runs again that were made with other settings; without it they are an error.

    Raises:
        UserError: no methods, no seeds, a seed twice, or a number out of its range.
    """

    run_dir: str = "runs/compare"
    methods: dict[str, MethodSettings] = field(default_factory=dict)
    baseline: str | None = None
    featured: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1])
    overrides: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("methods: empty; expected at least one, for example ppo: {config: [ppo.yaml]}")
        for role, name in (("baseline", self.baseline), ("featured", self.featured)):
            if name is not None and name not in self.methods:
                raise UserError(f"{role}: {name!r} is no method; expected one of {list(self.methods)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds: {self.seeds} is wrong; expected a list of different integers")
        if self.jobs < 1:
            raise UserError(f"jobs: {self.jobs} is out of range; expected an integer >= 1")
        for name, method in self.methods.items():
            if not name.replace("_", "").isalnum():
                raise UserError(f"methods: '{name}' is no name for a folder; use letters, digits and _")
            for path in method.config:
                if not Path(path).is_file():
                    raise UserError(f"methods.{name}.config: {path} is no file; expected a YAML of ippo fit")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a method with a seed."""

    method: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    fingerprint: str
    """Changes with the settings; a finished run of the same fingerprint is not done again."""

    @property
    def name(self) -> str:
        """As progress and errors show it."""
        return f"{self.method} seed {self.seed}"

    def is_finished(self) -> bool:
        """Return whether its results lie there already."""
        return (self.folder / RESULTS).is_file()


def run_comparison(settings: CompareSettings, *, command: str) -> dict[str, Any]:
    """Run what is not yet finished, write the report, print the table; return what `results.json` holds.

    Args:
        settings: see `CompareSettings`.
        command: how the user called it, for the page.

    Raises:
        UserError: a run failed, or an older one with other settings is in the way; finished runs stay.
        KeyboardInterrupt: after Ctrl-C; the same command goes on where it stopped.
    """
    root = Path(settings.run_dir)
    root.mkdir(parents=True, exist_ok=True)
    jobs = list(plan_jobs(settings))
    waiting = [job for job in jobs if not _is_reusable(job, overwrite=settings.overwrite)]
    describe(settings, command=command, root=root)
    console = Console()
    if len(waiting) < len(jobs):
        console.print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already and kept.")
    _run_jobs(waiting, num_parallel=settings.jobs)
    page = write_report(root)
    results: dict[str, Any] = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    console.print(results_table(results))
    console.print(f"Report: {page}", soft_wrap=True)
    return results


def plan_jobs(settings: CompareSettings) -> Iterator[Job]:
    """Yield one job a method and seed, all methods of a seed next to each other."""
    for seed in settings.seeds:
        for name, method in settings.methods.items():
            if method.command == "evaluate" and seed != settings.seeds[0]:
                continue
            folder = seed_folder(Path(settings.run_dir), method=name, seed=seed)
            arguments = [method.command, *(word for path in method.config for word in ("--config", path))]
            arguments += ["--seed_everything", str(seed), "--loop.run_dir", str(folder)]
            chosen = {**settings.overrides, **method.overrides}
            arguments += [f"--{key}={_as_word(value)}" for key, value in chosen.items()]
            if method.command == "evaluate":
                arguments += ["--output", str(folder / RESULTS)]
            else:
                arguments += ["--loop.resume", "true", "--loop.progress_bar", "false"]
            contents = [Path(path).read_bytes() for path in method.config]
            fingerprint = hashlib.sha256(b"\0".join([*(word.encode() for word in arguments), *contents])).hexdigest()
            yield Job(method=name, seed=seed, folder=folder, arguments=tuple(arguments), fingerprint=fingerprint)


def _as_word(value: Any) -> str:
    """Spell a value as the command line reads it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def describe(settings: CompareSettings, *, command: str, root: Path) -> None:
    """Write `comparison.json`: what the page needs to know of the whole."""
    content = {
        "methods": {
            name: {
                "title": method.title or name,
                "seeds": settings.seeds[:1] if method.command == "evaluate" else settings.seeds,
                "baseline": None if name == settings.baseline else settings.baseline,
                "featured": name == settings.featured,
            }
            for name, method in settings.methods.items()
        },
        "command": command,
        "config": "\n".join(f"{name}: {json.dumps(vars(method))}" for name, method in settings.methods.items()),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {settings.jobs} runs at a time",
    }
    (root / COMPARISON).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _is_reusable(job: Job, *, overwrite: bool) -> bool:
    """Return whether a finished run of the same settings lies there; clear away one that may be overwritten."""
    stamp = job.folder / FINGERPRINT
    same = stamp.is_file() and stamp.read_text(encoding="utf-8") == job.fingerprint
    if same or (not (job.folder / HISTORY).exists() and not job.is_finished()):
        return same and job.is_finished()
    if not overwrite:
        raise UserError(
            f"run_dir: {job.folder} holds a run with other settings; name another folder, or set overwrite to true"
        )
    for path in sorted(job.folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() or path.is_symlink() else path.rmdir()
    return False


def _run_jobs(waiting: Sequence[Job], *, num_parallel: int) -> None:
    """Run jobs as processes, `num_parallel` at a time, with a line of progress each."""
    threads = max((os.cpu_count() or 1) // num_parallel, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    queue, running = list(waiting), dict[subprocess.Popen[bytes], tuple[Job, TaskID]]()
    failed: list[Job] = []
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[numbers]}"), console=Console(stderr=True)) as progress:
        try:
            while running or (queue and not failed):
                while queue and not failed and len(running) < num_parallel:
                    job = queue.pop(0)
                    running[_start(job, environment)] = (job, progress.add_task(job.name[:24], total=None, numbers=""))
                time.sleep(0.2)
                for process, (job, task) in list(running.items()):
                    _show(progress, task, job)
                    if process.poll() is not None:
                        del running[process]
                        has_failed = bool(process.returncode) or not job.is_finished()
                        failed += [job] if has_failed else []
                        _finish(progress, task, has_failed=has_failed)
        except KeyboardInterrupt:
            _stop(running)
            raise KeyboardInterrupt("runs under way wrote a checkpoint; the same command goes on from there") from None
    if failed:
        raise UserError(
            f"compare: {failed[0].name} failed: {_last_line(failed[0])}; whole log in {failed[0].folder / LOG}"
        )


def _start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FINGERPRINT).write_text(job.fingerprint, encoding="utf-8")
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ippo_lightning.cli", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches the runs through this process, once
        )


def _stop(running: Mapping[subprocess.Popen[bytes], Any]) -> None:
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        process.wait()


def _show(progress: Progress, task: TaskID, job: Job) -> None:
    """Bring a job's line up to date from what its run has written."""
    history = job.folder / HISTORY
    if not history.is_file():
        return
    lines = history.read_text(encoding="utf-8").splitlines()
    try:
        last = json.loads(lines[-1])
    except (IndexError, ValueError):
        return  # nothing yet, or a line being written
    reward, kept = last.get("rollout/reward_mean"), last.get("update/kept_fraction")
    words = [f"reward {reward:.2f}" if reward is not None else "", f"kept {kept:.0%}" if kept is not None else ""]
    total = last.get("max_iterations")
    progress.update(task, completed=len(lines), total=total, numbers=" ".join(words))


def _finish(progress: Progress, task: TaskID, *, has_failed: bool) -> None:
    """Stop a line's clock; one without iterations, an evaluation, counts as one thing done."""
    line = next(entry for entry in progress.tasks if entry.id == task)
    if line.total is None and not has_failed:
        progress.update(task, completed=1, total=1)
    progress.stop_task(task)


def _last_line(job: Job) -> str:
    lines = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it wrote nothing"
