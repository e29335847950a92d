"""What the policies of runs in environments do: an episode of each method, moving and as stills."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ippo_lightning.report.display import counted, number, plain, whole
from ippo_lightning.report.records import Comparison, Method, Run
from ippo_lightning.storage.iteration_files import newest_frames
from ippo_lightning.storage.run_folder import MOST_FRAMES, MOST_PIXELS

_LOG = logging.getLogger(__name__)
_LARGEST = 16 * 1024 * 1024
_NUM_STILLS = 8


@dataclass(frozen=True)
class Still:
    """One frame, which does not move."""

    words: str
    data_uri: str
    """The PNG itself."""


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode of one method."""

    method: str
    """Its name."""
    caption: str
    data_uri: str
    """The animated GIF itself."""
    stills: tuple[Still, ...]
    """Evenly spaced frames, the first and the last one among them."""


def played_episodes(comparison: Comparison) -> list[PlayedEpisode]:
    """Read one episode of each method, of its first run that has one; runs with results come first.

    Args:
        comparison: the runs.
    """
    found = (_of_method(method) for method in comparison.methods.values())
    return [episode for episode in found if episode is not None]


def _of_method(method: Method) -> PlayedEpisode | None:
    for run in (*method.finished, *(run for run in method.runs if not run.finished)):
        path = newest_frames(run.folder, iteration=_iterations_done(run))
        if path is None:
            continue
        try:
            return _read(path, run=run, method=method)
        except Exception as error:  # Pillow raises many kinds for a file that is none of ours
            _LOG.warning("%s is not readable (%s); the report shows no frames of it", path, type(error).__name__)
    return None


def _iterations_done(run: Run) -> int:
    return int(run.history[-1]["iteration"]) + 1 if run.history else 0


def _read(path: Path, *, run: Run, method: Method) -> PlayedEpisode:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"larger than {_LARGEST} bytes")
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=["GIF"]) as image:
        if max(image.size) > MOST_PIXELS:
            raise ValueError(f"{image.size} pixels")
        facts = json.loads(image.info["comment"])
        frames = _frames(image)
    return PlayedEpisode(
        method=method.name,
        caption=_caption(facts, run=run, several_seeds=len(method.runs) > 1),
        data_uri=_data_uri(content, "gif"),
        stills=_stills(frames, facts["steps"]),
    )


def _frames(image: Image.Image) -> list[Image.Image]:
    """Return all frames; more than a run writes are an error, because each of a few bytes may be a large picture."""
    frames: list[Image.Image] = []
    for place in range(MOST_FRAMES + 1):
        try:
            image.seek(place)
        except EOFError:
            return frames
        frames.append(image.convert("RGB"))
    raise ValueError(f"more than {MOST_FRAMES} frames")


def _stills(frames: Sequence[Image.Image], steps: Sequence[Any]) -> tuple[Still, ...]:
    last = len(frames) - 1
    count = min(_NUM_STILLS, len(frames))
    places = dict.fromkeys(round(index * last / max(count - 1, 1)) for index in range(count))
    return tuple(Still(_still_words(number(steps[place])), _png(frames[place])) for place in places)


def _still_words(step: float | None) -> str:
    return "start" if step == 0 else f"step {whole(step)}"


def _png(frame: Image.Image) -> str:
    file = io.BytesIO()
    # A GIF has at most 256 colours per frame, so that a palette loses nothing.
    frame.quantize().save(file, format="PNG", optimize=True)
    return _data_uri(file.getvalue(), "png")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _caption(facts: dict[str, Any], *, run: Run, several_seeds: bool) -> str:
    iteration, length = (int(number(facts[name]) or 0) for name in ("iteration", "length"))
    of_run = f" of the run with seed {run.seed}" if several_seeds and run.seed is not None else ""
    ending = "" if facts["is_over"] is True else ", then cut by the renderer"
    return (
        f"After {counted(iteration, 'iteration')}{of_run}: return {plain(number(facts['return']))} in "
        f"{counted(length, 'step')}{ending}. Seed of the episode: {whole(number(facts['seed']))}."
    )
