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
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.run_folder import FINGERPRINT, FINGERPRINT_VARIABLE, HISTORY, LOG, RESULTS, RunFolder

_POLL_SECONDS = 0.2
_REPLACE = ["--loop.resume", "false", "--loop.overwrite", "true"]
"""Words of a run that replaces one with other settings."""


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
    """Return whether a finished run of the same settings exists. Nothing is removed here.

    Raises:
        UserError: the folder contains a run with other settings, and `overwrite` is false.
    """
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
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[numbers]}"), console=Console(stderr=True)) as progress:
        try:
            while running or (queue and not failed):
                while queue and not failed and len(running) < num_parallel:
                    job = queue.pop(0)
                    running[_start(job, environment)] = (job, progress.add_task(job.name[:24], total=None, numbers=""))
                time.sleep(_POLL_SECONDS)
                # a copy, because finished runs leave the dictionary in this loop
                for process, (job, task) in list(running.items()):
                    _show(progress, task, job)
                    if process.poll() is not None:
                        del running[process]
                        # code 0 is not enough: a run without a final test leaves no results for the table
                        has_failed = bool(process.returncode) or not job.is_finished()
                        if not has_failed:  # for an evaluation, which replaces its numbers only now
                            write_text_whole(job.folder / FINGERPRINT, job.fingerprint)
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
            env={**environment, FINGERPRINT_VARIABLE: job.fingerprint},
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
