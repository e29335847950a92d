"""Files that a run writes about one of its iterations: their places in its folder, and which there are."""

from __future__ import annotations

import re
from pathlib import Path

from ippo_lightning.storage.run_folder import BUFFERS, COMPLETIONS, FRAMES, NONFINITE


def nonfinite_path(folder: Path, *, iteration: int, rank: int) -> Path:
    """Return the file of a step whose loss or gradient is not finite.

    Args:
        folder: the run's folder.
        iteration: counted from 0.
        rank: each rank has passes, and so a file, of its own.
    """
    return folder / NONFINITE / f"step_{iteration:07d}{_rank_suffix(rank)}.pt"


def nonfinite_files(folder: Path, *, rank: int) -> list[Path]:
    """Return the files of a rank's steps that were not finite, the oldest step first.

    Args:
        folder: the run's folder; it need not exist.
        rank: whose files.
    """
    name = re.compile(rf"step_(\d+){_rank_suffix(rank)}\.pt")
    found = [path for path in (folder / NONFINITE).glob("step_*.pt") if name.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("_")[1].removesuffix(".pt")))


def _rank_suffix(rank: int) -> str:
    return f"_rank_{rank}" if rank else ""


def buffer_path(folder: Path, *, iteration: int, rank: int) -> Path:
    """Return the file of a kept iteration.

    Args:
        folder: the run's folder.
        iteration: counted from 0.
        rank: each rank has rows, and so a file, of its own.
    """
    return folder / BUFFERS / f"iteration_{iteration:07d}{_rank_suffix(rank)}.pt"


def kept_iterations(folder: Path) -> list[int]:
    """Return the iterations whose buffers are kept, in their order.

    Args:
        folder: the run's folder; it need not exist.
    """
    name = re.compile(r"iteration_(\d+)\.pt")
    found = (name.fullmatch(path.name) for path in (folder / BUFFERS).glob("iteration_*.pt"))
    return sorted(int(match[1]) for match in found if match is not None)


def completions_path(folder: Path, *, iteration: int) -> Path:
    """Return the parquet file with an iteration's completions.

    Args:
        folder: the run's folder.
        iteration: counted from 0.
    """
    return folder / COMPLETIONS / f"iteration_{iteration:07d}.parquet"


def frames_path(folder: Path, *, iteration: int) -> Path:
    """Return the animation of an episode.

    Args:
        folder: the run's folder.
        iteration: iterations of the run that were done when the episode was played.
    """
    return folder / FRAMES / f"iteration_{iteration:07d}.gif"


def newest_frames(folder: Path, *, iteration: int) -> Path | None:
    """Return the newest animation of an episode; None without one.

    Args:
        folder: the run's folder; it need not exist.
        iteration: iterations of the run that are done. Animations of later ones are of an end that was undone.
    """
    found = [path for path in (folder / FRAMES).glob("iteration_*.gif") if re.fullmatch(r"iteration_\d{7,}", path.stem)]
    numbers = {int(path.stem.removeprefix("iteration_")): path for path in found}
    return max(((number, path) for number, path in numbers.items() if number <= iteration), default=(0, None))[1]
