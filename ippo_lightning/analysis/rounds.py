"""The kept iterations of a run: which there are, and their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ippo_lightning.errors import UserError
from ippo_lightning.records import Episodes, PlanChange
from ippo_lightning.records.kept_rounds import KeptRound, kept_round
from ippo_lightning.storage.iteration_files import buffer_path, kept_iterations
from ippo_lightning.storage.run_folder import BUFFERS, CONFIG, HISTORY
from ippo_lightning.storage.tensor_files import read_tensors


def kept_rounds(folder: Path) -> list[int]:
    """Return the iterations that a run has kept, in their order.

    Args:
        folder: of the run.

    Raises:
        UserError: it is no folder of a run, or kept none.
    """
    found = kept_iterations(folder)
    if not found:
        if not (folder / CONFIG).is_file():
            raise UserError(f"run: {folder} has no {CONFIG}; expected the folder of a run of `ippo fit`")
        if _is_of_sft(folder):
            raise UserError(
                f"run: {folder} is of supervised fine-tuning, which has no rollouts; expected a run of PPO or another "
                "algorithm with rollouts, with --method keep_buffers"
            )
        raise UserError(
            f"run: {folder} has no {BUFFERS}/; train with the callback EpisodeLog and its keep_buffers: true, for "
            "example by --method keep_buffers"
        )
    return found


def _is_of_sft(folder: Path) -> bool:
    """Return whether a run recorded the loss of demonstrations, as `SFTModule` and its subclasses do."""
    path = folder / HISTORY
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return '"sft/loss"' in file.readline(_LONGEST_LINE)


_LONGEST_LINE = 1 << 16
"""Characters read of the first line of the history, which may be of any origin."""


def read_round(folder: Path, iteration: int) -> KeptRound:
    """Return a kept iteration with the rows of all ranks, those of rank 0 first.

    Args:
        folder: of the run.
        iteration: counted from 0.

    Raises:
        UserError: the iteration was not kept, or a file is missing, damaged or of another iteration.
    """
    there = kept_rounds(folder)
    if iteration not in there:
        raise UserError(f"iteration: {iteration} was not kept; {folder} has {_listed(there)}, counted from 0")
    first = _read(folder, iteration, rank=0)
    others = [_read(folder, iteration, rank=rank) for rank in range(1, first.num_ranks)]
    return _joined(first, others) if others else first


def _read(folder: Path, iteration: int, *, rank: int) -> KeptRound:
    path = buffer_path(folder, iteration=iteration, rank=rank)
    found = kept_round(read_tensors(path, name="buffer"), source=path)
    if found.iteration != iteration:
        raise UserError(f"buffer: {path} is of iteration {found.iteration}; expected {iteration}")
    return found


def _joined(first: KeptRound, others: Sequence[KeptRound]) -> KeptRound:
    """Return one record of the rows of all ranks, whose callbacks made the same changes in the same order."""
    ranks = [first, *others]
    if any([change.reason for change in one.history] != [change.reason for change in first.history] for one in others):
        raise UserError(f"buffer: the ranks of iteration {first.iteration} were changed by different callbacks")
    history = tuple(_joined_change(changes) for changes in zip(*(one.history for one in ranks), strict=True))
    episodes = type(first.episodes).concat(_with_own_groups([one.episodes for one in ranks]))
    return replace(first, episodes=episodes, history=history)


def _with_own_groups(parts: Sequence[Episodes]) -> list[Episodes]:
    """Return the rows of the ranks with groups that no other rank has: each rank counts its prompts from 0."""
    shifted, first = [], 0
    for part in parts:
        shifted.append(part.evolve(group=part.group + first))
        first = int(shifted[-1].group.max()) + 1 if len(part) else first
    return shifted


def _joined_change(changes: Sequence[PlanChange]) -> PlanChange:
    scores = [change.scores for change in changes if change.scores is not None]
    return PlanChange(
        reason=changes[0].reason,
        kind=changes[0].kind,
        factors=torch.cat([change.factors for change in changes]),
        scores=torch.cat(scores) if len(scores) == len(changes) else None,
    )


def _listed(iterations: Sequence[int]) -> str:
    """Return iterations in a few words, such as `0 to 49` or `0, 10, 20, ... 90`."""
    if len(iterations) > 1 and list(iterations) == list(range(iterations[0], iterations[-1] + 1)):
        return f"{iterations[0]} to {iterations[-1]}"
    if len(iterations) <= _MOST_NAMED:
        return ", ".join(map(str, iterations))
    return f"{', '.join(map(str, iterations[: _MOST_NAMED - 1]))}, ... {iterations[-1]}"


_MOST_NAMED = 6
