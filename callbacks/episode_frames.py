"""Show what a policy does in its environment: an episode as an animated GIF, which the report shows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback
from PIL import Image

from ippo_lightning.callbacks.episode_log import HasRunFolder
from ippo_lightning.distributed.collectives import rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records import RenderedEpisode
from ippo_lightning.storage.atomic import write_whole
from ippo_lightning.storage.iteration_files import frames_path
from ippo_lightning.storage.run_folder import finite

_FASTEST, _SLOWEST, _LAST = 60, 200, 1500
"""Milliseconds that a frame is shown; the last one is shown longer."""


class EpisodeFrames(Callback):
    """Render an episode of the policy at the end of a run, for the report; rank 0 plays it.

    The episode is played in an environment of its own, from random streams of its own, with the wrappers and statistics
    of training: the run stays bit for bit what it is without the callback. `episode_frames/iteration_<n>.gif` in the
    run's folder contains at most `max_frames` frames, evenly spaced. If the environment gives no pictures, one warning
    tells why, and the run goes on.

    Args:
        every_n_iterations: also after every n-th iteration; null for the end of the run alone.
        seed: of the episode.
        max_frames: frames that are written.
        max_size: pixels of the longer side of a frame; a larger one is made smaller.
        max_steps: the episode is cut after so many, for environments without a limit.

    Raises:
        UserError: a number out of its range; when a run begins, a module that renders nothing.
    """

    def __init__(
        self,
        every_n_iterations: int | None = None,
        seed: int = 0,
        max_frames: int = 60,
        max_size: int = 320,
        max_steps: int = 2000,
    ) -> None:
        super().__init__()
        if every_n_iterations is not None:
            require_range("EpisodeFrames.every_n_iterations", every_n_iterations, at_least=1, integer=True)
        require_range("EpisodeFrames.seed", seed, at_least=0, integer=True)
        # MOST_FRAMES and MOST_PIXELS of storage, written out: a YAML is checked by these lines before any import
        require_range("EpisodeFrames.max_frames", max_frames, at_least=2, at_most=200, integer=True)
        require_range("EpisodeFrames.max_size", max_size, at_least=16, at_most=640, integer=True)
        require_range("EpisodeFrames.max_steps", max_steps, at_least=1, integer=True)
        self.every_n_iterations = every_n_iterations
        self.seed, self.max_frames, self.max_size, self.max_steps = seed, max_frames, max_size, max_steps
        self.is_off = False
        """Whether the environment gave no pictures; it will give none later."""
        self.rendered_at: int | None = None
        """Iterations done at the newest episode of this fit."""

    def setup(self, trainer: HasRunFolder, pl_module: Any, stage: str) -> None:
        """Refuse a module without an environment.

        Raises:
            UserError: it has no `render_episode`.
        """
        self.is_off, self.rendered_at = False, None
        if not callable(getattr(pl_module, "render_episode", None)):
            raise UserError(
                f"callbacks: EpisodeFrames renders an environment, and {type(pl_module).__name__} has none; leave it "
                "out of a run on texts"
            )

    def on_train_batch_end(
        self, trainer: HasRunFolder, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Render after every n-th iteration."""
        if self.every_n_iterations is not None and pl_module.iteration % self.every_n_iterations == 0:
            self.render(trainer, pl_module)

    def on_train_end(self, trainer: HasRunFolder, pl_module: Any) -> None:
        """Render the final policy."""
        self.render(trainer, pl_module)

    def render(self, trainer: HasRunFolder, pl_module: Any) -> None:
        """Play an episode and write its frames, on rank 0.

        Args:
            trainer: has `default_root_dir`.
            pl_module: see `ControlPPOModule.render_episode`.
        """
        if self.is_off or rank() != 0 or self.rendered_at == pl_module.iteration:
            return
        try:
            if is_sharded(pl_module):
                raise UserError("the policy is sharded, and one rank alone cannot play")
            episode = pl_module.render_episode(
                seed=self.seed, max_frames=self.max_frames, max_size=self.max_size, max_steps=self.max_steps
            )
        except Exception as error:  # an environment may raise anything, and no run ends for the lack of a picture
            self.is_off = True
            warnings.warn(f"EpisodeFrames: no frames of an episode ({_reason(error)})", stacklevel=2)
            return
        self.rendered_at = pl_module.iteration
        path = frames_path(Path(trainer.default_root_dir), iteration=pl_module.iteration)
        write_animation(episode, path, iteration=pl_module.iteration, seed=self.seed)


def write_animation(episode: RenderedEpisode, path: Path, *, iteration: int, seed: int) -> None:
    """Write an episode as an animated GIF, completely or not at all; its comment is JSON and tells what is seen.

    Args:
        episode: at least one frame.
        path: the file to write.
        iteration: iterations of the run that are done.
        seed: of the episode.
    """
    shown = animated(episode)
    comment = {
        "iteration": iteration,
        "seed": seed,
        "return": episode.episode_return,
        "length": episode.length,
        "is_over": episode.is_over,
        "steps": [frame.step for frame in shown],
    }
    first, *others = (frame.image for frame in shown)
    options: dict[str, Any] = {
        "save_all": True,
        "append_images": others,
        "duration": [frame.milliseconds for frame in shown],
        "loop": 0,
        "comment": json.dumps(finite(comment)).encode("ascii"),
    }
    write_whole(path, lambda file: first.save(file, format="GIF", **options))


class AnimatedFrame(NamedTuple):
    """A frame of a GIF, which is none of its neighbours."""

    step: int
    image: Image.Image
    milliseconds: int


def animated(episode: RenderedEpisode) -> Sequence[AnimatedFrame]:
    """Return the frames of an episode with at most 256 colours each; equal neighbours are one frame, shown longer.

    Args:
        episode: frames by the number of steps before them.
    """
    # Equal frames are joined here: Pillow would drop them, and the number of a frame would not tell its step.
    shown: list[AnimatedFrame] = []
    steps = sorted(episode.frames)
    for step, later in zip(steps, [*steps[1:], None], strict=True):
        image = Image.fromarray(episode.frames[step]).quantize()
        seconds = ((later or step) - step) / episode.frames_per_second
        time = _LAST if later is None else round(min(max(1000 * seconds, _FASTEST), _SLOWEST))
        if shown and _pixels(shown[-1].image) == _pixels(image):
            last = shown.pop()
            shown.append(last._replace(milliseconds=last.milliseconds + time))
        else:
            shown.append(AnimatedFrame(step, image, time))
    return shown


def _pixels(image: Image.Image) -> bytes:
    return image.convert("RGB").tobytes()


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())[:300]
    return message if isinstance(error, UserError) else f"{type(error).__name__}: {message}".removesuffix(": ")
