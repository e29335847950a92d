"""A run takes over its folder: first it only looks, and it changes files when nothing can refuse the run any more."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ippo_lightning.errors import UserError
from ippo_lightning.run.checkpoints import Best, Checkpoint
from ippo_lightning.run.environment import origin
from ippo_lightning.run.loaders import loader_of
from ippo_lightning.run.loggers import log_again
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.checksums import with_checksum_line
from ippo_lightning.storage.run_folder import CONFIG, EVALUATIONS, FINGERPRINT_VARIABLE, HISTORY, ORIGIN

if TYPE_CHECKING:
    from ippo_lightning.run.fabric_loop import FabricLoop
    from ippo_lightning.run.settings import LoopSettings


def begin_folder(loop: FabricLoop) -> bool:
    """Lock the folder on rank 0 and tell all ranks, also of an error: no rank waits for one that is gone.

    Args:
        loop: about to be set up.

    Returns:
        Whether there is a checkpoint to resume from.

    Raises:
        UserError: see `RunFolder.begin`.
    """
    resumes, problem = False, None
    if loop.is_global_zero:
        # A callback may append to a file of its own, which has to end with the checkpoint as the others do.
        for callback in loop.callbacks:
            loop.folder.logs.add(getattr(callback, "appended_files", ()))
        try:
            resumes = loop.folder.begin(resume=loop.settings.resume, overwrite=loop.settings.overwrite)
        except (UserError, OSError) as error:
            problem = str(error)
    resumes, problem = loop.fabric.broadcast((resumes, problem))
    if problem is not None:
        raise UserError(problem)
    return bool(resumes)


def check_evaluations(loop: FabricLoop) -> None:
    """Refuse a run that could not evaluate in the end, before its first iteration.

    Args:
        loop: its data are set up.

    Raises:
        UserError: there is no grader, or a split without prompts is to be evaluated.
    """
    settings = loop.settings
    validates = settings.evaluate_first or 0 < settings.evaluate_every_n_iterations <= settings.max_iterations
    if validates or settings.test_at_end:
        loop.module.check_evaluation()
    if validates:
        loader_of(loop.datamodule, "validation")
    if settings.test_at_end:
        loader_of(loop.datamodule, "test")


def best_of(state: Checkpoint, settings: LoopSettings) -> Best:
    """Return the best evaluation that a checkpoint knows; none, with a warning, if it is of another metric.

    Args:
        state: of the checkpoint.
        settings: of this run.
    """
    best = state["best"].copy()
    mine = (settings.best_metric, settings.best_mode)
    if not best or mine == (best["metric"], best.get("mode", settings.best_mode)):
        return best
    if settings.best_metric is not None:
        warnings.warn(
            f"resume: the best evaluation so far is by {best['metric']}, and this run's loop.best_metric is "
            f"{settings.best_metric} ({settings.best_mode}); the best begins again",
            stacklevel=2,
        )
    return {}


def open_folder(loop: FabricLoop, resumed_from: tuple[Path, Checkpoint] | None) -> None:
    """Make the folder that of this run: clear it, or leave what the checkpoint covers. Rank 0 writes.

    Args:
        loop: passed every check, and loaded its checkpoint.
        resumed_from: the checkpoint and its content; None for a new run.
    """
    # Other ranks may still read a checkpoint that is renamed here.
    loop.fabric.barrier()
    if not loop.is_global_zero:
        return
    if resumed_from is None:
        loop.folder.clear()
    else:
        _go_on(loop, *resumed_from)
    # A run of a comparison that is continued by hand may have other settings, and counts as the comparison's no more.
    loop.folder.set_fingerprint(os.environ.get(FINGERPRINT_VARIABLE))
    # A run that goes on keeps the origin of its first iteration.
    if resumed_from is None or not (loop.folder.path / ORIGIN).exists():
        loop.folder.write(ORIGIN, origin(loop.command))
    if loop.config:
        write_text_whole(loop.folder.path / CONFIG, with_checksum_line(loop.config))


def _go_on(loop: FabricLoop, path: Path, state: Checkpoint) -> None:
    folder, iteration = loop.folder, loop.module.iteration
    loop.checkpoints.go_on_from(path, state)
    if iteration < loop.max_iterations:
        folder.set_results_aside(iteration=iteration)
    # A checkpoint of an earlier version has no logs.
    for problem in folder.logs.restore(state.get("logs"), iteration=iteration):
        warnings.warn(problem, stacklevel=2)
    log_again(loop.loggers, history=folder.read_rows(HISTORY), evaluations=folder.read_rows(EVALUATIONS))
