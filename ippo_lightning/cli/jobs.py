"""Runs of a comparison as processes, several at a time, with a line of progress each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import FINGERPRINT, HISTORY, LOG, RESULTS
from ippo_lightning.storage.untrusted_text import visible_text

_POLL_SECONDS = 0.2


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

    def is_finished(self) -> bool:
        """Return whether its results exist."""
        return (self.folder / RESULTS).is_file()


def is_reusable(job: Job, *, overwrite: bool) -> bool:
    """Return whether a finished run of the same settings exists; remove one that may be overwritten.

    Raises:
        UserError: the folder contains a run with other settings, and `overwrite` is false.
    """
    stamp = job.folder / FINGERPRINT
    # an unfinished run of the same settings stays as it is: it resumes from its checkpoint
    is_same = stamp.is_file() and stamp.read_text(encoding="utf-8") == job.fingerprint
    if is_same or (not (job.folder / HISTORY).exists() and not job.is_finished()):
        return is_same and job.is_finished()
    if not overwrite:
        raise UserError(
            f"run_dir: {job.folder} contains a run with other settings; name another folder, or set overwrite to true"
        )
    for path in sorted(job.folder.rglob("*"), reverse=True):  # reverse: the entries of a folder before the folder
        path.unlink() if path.is_file() or path.is_symlink() else path.rmdir()
    return False


def run_jobs(waiting: Sequence[Job], *, num_parallel: int) -> None:
    """Run jobs as processes.

    Args:
        waiting: in the order in which they start.
        num_parallel: jobs at a time; after a failure no further one starts.

    Raises:
        UserError: a run failed; finished runs stay.
        KeyboardInterrupt: after Ctrl-C; the runs under way wrote a checkpoint.
    """
    # without this limit every run would start one thread per core, and the runs would slow each other down
    threads = max((os.cpu_count() or 1) // num_parallel, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    queue, running = list(waiting), dict[subprocess.Popen[bytes], tuple[Job, TaskID]]()
    failed: list[Job] = []
    name, numbers = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[numbers]}")
    columns = (name, BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), numbers)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        try:
            while running or (queue and not failed):
                while queue and not failed and len(running) < num_parallel:
                    job = queue.pop(0)
                    task = progress.add_task(visible_text(job.name[:24]), total=None, numbers="")
                    running[_start(job, environment)] = (job, task)
                time.sleep(_POLL_SECONDS)
                # a copy, because finished runs leave the dictionary in this loop
                for process, (job, task) in list(running.items()):
                    _show(progress, task, job)
                    if process.poll() is not None:
                        del running[process]
                        # code 0 is not enough: a run without a final test leaves no results for the table
                        has_failed = bool(process.returncode) or not job.is_finished()
                        failed += [job] if has_failed else []
                        _finish(progress, task, has_failed=has_failed)
        except KeyboardInterrupt:
            _stop(running)
            raise KeyboardInterrupt("runs under way wrote a checkpoint; the same command resumes them") from None
    if failed:
        raise UserError(
            f"compare: {failed[0].name} failed: {_last_line(failed[0])}; full log in {failed[0].folder / LOG}"
        )


def _start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    # before the run, so that one that is killed is known again and resumes
    (job.folder / FINGERPRINT).write_text(job.fingerprint, encoding="utf-8")
    # appended: a resumed run keeps the log of its first part
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
    # all signals before the first wait: the runs finish their iterations side by side
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        process.wait()


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
    reward, kept = last.get("rollout/reward_mean"), last.get("update/kept_fraction")
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
    return lines[-1][:300] if lines else "it wrote nothing"
