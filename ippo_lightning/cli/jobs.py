"""Runs of a comparison as processes, several at a time, with a line of progress each."""

from __future__ import annotations

import json
import os
import signal
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
from ippo_lightning.run.signals import Interrupted, handled_by
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.locks import hold
from ippo_lightning.storage.run_folder import FINGERPRINT, FINGERPRINT_VARIABLE, HISTORY, LOG, RESULTS, RunFolder
from ippo_lightning.storage.untrusted_text import visible_text

_POLL_SECONDS = 0.2
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
    # `python -m` searches the working folder before any installed package, also if nobody trusts what lies there; a run
    # searches it last, and only for what is trusted. (Python 3.10 does not know this variable.)
    environment["PYTHONSAFEPATH"] = "1"
    queue, running = list(waiting), dict[subprocess.Popen[bytes], Started]()
    failed: list[Job] = []
    name, numbers = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[numbers]}")
    columns = (name, BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), numbers)
    progress = Progress(*columns, console=Console(stderr=True))
    say = partial(progress.console.print, markup=False, highlight=False)
    with progress, raised_signals() as signals:
        try:
            while running or (queue and not failed):
                while queue and not failed and len(running) < num_parallel:
                    job = queue.pop(0)
                    say(f"{job.name}: {'resumed' if (job.folder / HISTORY).exists() else 'started'}")
                    task = progress.add_task(visible_text(job.name[:24]), total=None, numbers="")
                    running[_start(job, environment)] = Started(job, task, time.monotonic())
                time.sleep(_POLL_SECONDS)
                # a copy, because finished runs leave the dictionary in this loop
                for process, (job, task, begun) in list(running.items()):
                    _show(progress, task, job)
                    if process.poll() is not None:
                        del running[process]
                        # code 0 is not enough: a run without a final test leaves no results for the table
                        has_failed = bool(process.returncode) or not job.is_finished()
                        if not has_failed:  # for an evaluation, which replaces its numbers only now
                            write_text_whole(job.folder / FINGERPRINT, job.fingerprint)
                        failed += [job] if has_failed else []
                        _finish(progress, task, has_failed=has_failed)
                        say(f"{job.name}: {'failed' if has_failed else 'done'} after {time.monotonic() - begun:.0f} s")
        except KeyboardInterrupt:
            say(f"stopping {len(running)} of {len(waiting)} runs, each after its iteration; again to stop at once")
            _stop(running)
            # A second Ctrl-C while they stop ends here, too.
            number = signals[0] if signals else signal.SIGINT
            message = "runs under way wrote a checkpoint; the same command resumes them"
            raise Interrupted(message, number=number) from None
    if failed:
        raise UserError(
            f"compare: {failed[0].name} failed: {_last_line(failed[0])}; full log in {failed[0].folder / LOG}"
        )


@contextmanager
def raised_signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt for each of Ctrl-C, SIGTERM and SIGHUP; collect the numbers of those that arrive."""
    arrived: list[int] = []

    def on_signal(number: int, _: object) -> None:
        arrived.append(number)
        raise KeyboardInterrupt

    with handled_by(on_signal, _STOPPING):
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
            env={**environment, FINGERPRINT_VARIABLE: job.fingerprint},
            start_new_session=True,  # Ctrl-C reaches the runs through this process, once
        )


def _stop(running: Collection[subprocess.Popen[bytes]]) -> None:
    """Let runs write a checkpoint and end; a further signal to this process stops them at once."""
    # all signals before the first wait: the runs finish their iterations side by side
    for process in running:
        _interrupt(process)
    while any(process.poll() is None for process in running):
        _wait_a_little(running)


def _wait_a_little(running: Collection[subprocess.Popen[bytes]]) -> None:
    try:
        time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        for process in running:
            _interrupt(process)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    # not SIGINT, which the runs of a comparison in the background of a script ignore
    process.terminate()


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
