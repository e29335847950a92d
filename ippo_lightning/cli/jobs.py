"""Runs of a comparison as processes, several at a time, with a line of progress each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ippo_lightning.errors import UserError
from ippo_lightning.run.progress import kept_fraction
from ippo_lightning.run.signals import Interrupted, handled_by
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.locks import hold
from ippo_lightning.storage.run_folder import (
    FINGERPRINT,
    FINGERPRINT_VARIABLE,
    FOLDER_VARIABLE,
    HISTORY,
    LOG,
    RESULTS,
    RunFolder,
)
from ippo_lightning.storage.untrusted_text import visible_text

_POLL_SECONDS = 0.2
_LONGEST_NAME = 24
"""Characters of a run's name beside its progress bar, so that a line fits 80 columns."""
_REPLACE = ["--loop.resume", "false", "--loop.overwrite", "true"]
"""Words of a run that replaces one with other settings."""
_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
"""What ends a comparison. SIGHUP: its terminal was closed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a column with a seed.

    Args:
        column: name of the column.
        seed: of every random stream.
        folder: of the run.
        arguments: words after `ippo`.
        fingerprint: changes with the settings; a finished run of the same fingerprint is kept.
    """

    column: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        """As progress and errors show it."""
        return f"{self.column} seed {self.seed}"

    @property
    def short_name(self) -> str:
        """At most 24 characters, unless the seed alone is longer: a long column is cut, and the seed stays whole."""
        seed = f" seed {self.seed}"
        width = max(_LONGEST_NAME - len(seed), 1)
        return (self.column if len(self.column) <= width else f"{self.column[: width - 1]}…") + seed

    def is_finished(self) -> bool:
        """Return whether its results exist."""
        return (self.folder / RESULTS).is_file()


class Started(NamedTuple):
    """A job under way."""

    job: Job
    task: TaskID
    begun: float
    """By the monotonic clock, seconds."""


def is_reusable(job: Job, *, overwrite: bool) -> bool:
    """Return whether a finished run of the same settings exists. Nothing is removed here.

    Raises:
        UserError: the folder contains a run with other settings, and `overwrite` is false; or one that is under way.
    """
    if not job.folder.exists():
        return False
    # first: what another process is writing is neither finished nor to be removed
    lock = hold(job.folder)
    if lock is None:
        raise UserError(f"run_dir: a run is under way in {job.folder}; wait for it, stop it, or name another folder")
    try:
        return _is_reusable(job, overwrite=overwrite)
    finally:
        lock.release()


def _is_reusable(job: Job, *, overwrite: bool) -> bool:
    if not _has_other_run(job):
        return _is_same(job) and job.is_finished()
    if not overwrite:
        raise UserError(
            f"run_dir: {job.folder} contains a run with other settings; name another folder, or set overwrite to true"
        )
    return False


def _is_same(job: Job) -> bool:
    stamp = job.folder / FINGERPRINT
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == job.fingerprint


def _has_other_run(job: Job) -> bool:
    # an unfinished run of the same settings stays as it is: it resumes from its checkpoint
    return not _is_same(job) and RunFolder(job.folder).has_run()


def run_jobs(waiting: Sequence[Job], *, num_parallel: int, threads: int) -> None:
    """Run jobs as processes. A line says when each starts and ends, also without a terminal.

    Args:
        waiting: in the order in which they start.
        num_parallel: jobs at a time; after a failure no further one starts.
        threads: of each job.

    Raises:
        UserError: a run failed; finished runs stay.
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP; the runs under way wrote a checkpoint.
    """
    # without this limit every run would start one thread per core, and the runs would slow each other down
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # `python -m` searches the working folder before installed packages, whether the user trusts it or not. With this
    # variable a run searches it last, and only for code that is trusted. Python 3.10 does not know the variable.
    environment["PYTHONSAFEPATH"] = "1"
    queue, running = list(waiting), dict[subprocess.Popen[bytes], Started]()
    failed: list[Job] = []
    name, numbers = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[numbers]}")
    columns = (name, BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), numbers)
    # soft wrap, because a path in a line that is broken inside cannot be copied
    progress = Progress(*columns, console=Console(stderr=True, soft_wrap=True))
    say = partial(progress.console.print, markup=False, highlight=False)
    with progress, collected_signals() as arrived:
        try:
            while (running or (queue and not failed)) and not arrived:
                while queue and not failed and not arrived and len(running) < num_parallel:
                    job = queue.pop(0)
                    say(f"{job.name}: {'resumed' if (job.folder / HISTORY).exists() else 'started'}")
                    task = progress.add_task(visible_text(job.short_name), total=None, numbers="")
                    running[_start(job, environment)] = Started(job, task, time.monotonic())
                time.sleep(_POLL_SECONDS)
                # a copy, because finished runs leave the dictionary in this loop
                for process, (job, task, begun) in list(running.items()):
                    _show(progress, task, job)
                    if process.poll() is not None:
                        del running[process]
                        has_failed = not _is_done(job, code=process.returncode)
                        failed += [job] if has_failed else []
                        _finish(progress, task, has_failed=has_failed)
                        say(f"{job.name}: {'failed' if has_failed else 'done'} after {time.monotonic() - begun:.0f} s")
            if arrived:
                say(f"stopping {len(running)} of {len(waiting)} runs, each after its iteration; again to stop at once")
        finally:
            # also after an error of this process, such as a full disk: no run goes on alone
            _stop(running, arrived)
    if arrived:
        raise Interrupted("runs under way wrote a checkpoint; the same command resumes them", number=arrived[0])
    if failed:
        raise UserError(
            f"compare: {failed[0].name} failed: {_last_line(failed[0])}; full log in {failed[0].folder / LOG}"
        )


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect the numbers of Ctrl-C, SIGTERM and SIGHUP that arrive."""
    arrived: list[int] = []
    # Nothing is raised: between the start of a run and the line that notes its process, an exception would lose it, and
    # the run would go on after the comparison's end.
    with handled_by(lambda number, _: arrived.append(number), _STOPPING):
        yield arrived


def _start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    arguments = list(job.arguments)
    if _has_other_run(job):
        # the run itself removes the other one, after its last check, and only then writes the new fingerprint
        arguments += _REPLACE if arguments[0] == "fit" else []
    else:
        # before the run, so that one that is killed is known again and resumes
        write_text_whole(job.folder / FINGERPRINT, job.fingerprint)
    # appended: a resumed run keeps the log of its first part
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ippo_lightning.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, FINGERPRINT_VARIABLE: job.fingerprint, FOLDER_VARIABLE: str(job.folder)},
            start_new_session=True,  # Ctrl-C reaches the runs through this process, once
        )


def _stop(running: Collection[subprocess.Popen[bytes]], arrived: Sequence[int]) -> None:
    """Let runs write a checkpoint and end; they get one signal, and one more for each further one that arrives.

    Args:
        running: their processes.
        arrived: signals to this process, which may become more.
    """
    num_sent = 0
    while any(process.poll() is None for process in running):
        if num_sent < max(len(arrived), 1):
            num_sent += 1
            for process in running:
                process.terminate()  # not SIGINT, which the runs of a comparison in the background of a script ignore
        time.sleep(_POLL_SECONDS)


def _is_done(job: Job, *, code: int) -> bool:
    """Return whether a run that has ended is finished; its folder is then known by its settings."""
    # code 0 is not enough: a run without a final test leaves no results for the table
    if code or not job.is_finished():
        return False
    # an evaluation that replaced other numbers gets its fingerprint only here; all others have it
    if not _is_same(job):
        write_text_whole(job.folder / FINGERPRINT, job.fingerprint)
    return True


def _show(progress: Progress, task: TaskID, job: Job) -> None:
    """Update the line of a job from what its run has written."""
    history = job.folder / HISTORY
    if not history.is_file():
        return
    lines = history.read_text(encoding="utf-8").splitlines()
    try:
        last = json.loads(lines[-1])
    except (IndexError, ValueError):
        return  # nothing yet, or a line that is being written
    reward, kept = last.get("rollout/reward_mean"), kept_fraction(last)
    words = [f"reward {reward:.2f}" if reward is not None else "", f"kept {kept:.0%}" if kept is not None else ""]
    total = last.get("max_iterations")
    progress.update(task, completed=len(lines), total=total, numbers=" ".join(words))


def _finish(progress: Progress, task: TaskID, *, has_failed: bool) -> None:
    """Stop the clock of a line; one without iterations, an evaluation, counts as one thing done."""
    line = next(entry for entry in progress.tasks if entry.id == task)
    if line.total is None and not has_failed:
        progress.update(task, completed=1, total=1)
    progress.stop_task(task)


def _last_line(job: Job) -> str:
    # `ippo fit` ends with its error in one line, so the last line tells most
    lines = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if not lines:
        return "it wrote nothing"
    # this line gets the same beginning again
    return lines[-1].removeprefix("ippo: ").removeprefix("error: ")[:300]
