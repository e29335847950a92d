"""Write the sampled episodes, with reward, score, weight and who changed the weight, into the run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from lightning import Callback

from ippo_lightning.callbacks.kept_buffers import BufferKeeper
from ippo_lightning.callbacks.requirements import require_rollouts, require_texts
from ippo_lightning.distributed.collectives import rank
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.records import ControlEpisodes, Example, RolloutPlan, TextEpisodes, UpdatePlan, UpdateStats
from ippo_lightning.storage.run_folder import EPISODES, JsonObject
from ippo_lightning.tasks import Grader, call_grader, label_text

MAX_TEXT = 2000
"""Characters kept of a prompt or a response."""


class HasRunFolder(Protocol):
    """What a callback of this project reads of the `lightning.Trainer` or `FabricLoop` that runs it."""

    @property
    def default_root_dir(self) -> str:
        """The run's folder."""


class EpisodeLog(Callback):
    """Append the episodes of every n-th iteration to `episodes.jsonl` in the run's folder; rank 0 writes its own.

    Args:
        every_n_iterations: 1 writes every iteration.
        file_name: name of the file inside the run's folder; None to write no episodes.
        keep_buffers: also keep what repeats the update of these iterations, in `buffers/`, for `ippo diagnose`,
            `ippo trace` and `ippo intervene`. A file has the rows of the iteration, and the trained parameters and the
            optimizer's state before the update. In environments, whose rows have no texts, it writes these files only.

    Raises:
        UserError: `every_n_iterations` is below 1, or nothing would be written.
    """

    def __init__(
        self, every_n_iterations: int = 1, file_name: str | None = EPISODES, *, keep_buffers: bool = False
    ) -> None:
        super().__init__()
        require_range("EpisodeLog.every_n_iterations", every_n_iterations, at_least=1, integer=True)
        if file_name is None and not keep_buffers:
            raise UserError(
                "EpisodeLog.file_name: null, and keep_buffers is false, so nothing would be written; set one"
            )
        self.every_n_iterations = every_n_iterations
        self.file_name = file_name
        self.keep_buffers = keep_buffers
        self._keeper = BufferKeeper()

    @property
    def appended_files(self) -> tuple[str, ...]:
        """Files in the run's folder that a checkpoint covers: a resumed run goes on at the line where it was then."""
        return () if self.file_name is None else (self.file_name,)

    def setup(self, trainer: HasRunFolder, pl_module: object, stage: str) -> None:
        """Refuse a module without prompts and responses, or one whose update cannot be repeated.

        Raises:
            UserError: the module makes no rollouts, acts in environments and no buffers are kept, or does not fit
                `keep_buffers`.
        """
        if stage == "fit":
            require_rollouts(self, pl_module)
        if self.keep_buffers:
            self._keeper.check(pl_module, callbacks=getattr(trainer, "callbacks", ()))
        else:
            require_texts(self, pl_module)

    def on_rollout_start(self, trainer: HasRunFolder, pl_module: Any, plan: RolloutPlan) -> None:
        """Copy what the update is going to change."""
        if self.keep_buffers and pl_module.iteration % self.every_n_iterations == 0:
            self._keeper.begin(pl_module)

    def on_update_end(self, trainer: HasRunFolder, pl_module: object, stats: UpdateStats) -> None:
        """Write one line per episode, and what repeats the update."""
        folder = Path(trainer.default_root_dir)
        writes = self.file_name is not None and not isinstance(stats.episodes, ControlEpisodes)
        if writes and is_due(stats, every_n_iterations=self.every_n_iterations):
            append_rows(folder / str(self.file_name), episode_rows(stats, grader=grader_of(pl_module)))
        if self.keep_buffers and stats.iteration % self.every_n_iterations == 0:
            self._keeper.write(folder, pl_module, stats)


def is_due(stats: UpdateStats, *, every_n_iterations: int) -> bool:
    """Return whether this rank records this iteration: only rank 0 writes, every n-th iteration from the first on."""
    # One writer per file: lines of several processes would be mixed.
    return stats.iteration % every_n_iterations == 0 and rank() == 0


def grader_of(module: object) -> Grader | None:
    """Return the module's grader; None for a module that has none."""
    # By name: a foreign module has no grader, and needs no base class of this project.
    grader: Grader | None = getattr(module, "grader", None)
    return grader


def append_rows(path: Path, rows: Sequence[JsonObject]) -> None:
    """Append rows to a JSON-lines file.

    Args:
        path: the file; its folder is created if it is missing.
        rows: values that JSON has.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        # json.dumps escapes all but ASCII: half a character of a model has no UTF-8, and some characters end a line.
        file.writelines(json.dumps(row) + "\n" for row in rows)


def episode_rows(stats: UpdateStats, *, grader: Grader | None = None) -> list[JsonObject]:
    """Return one plain record per episode.

    Args:
        stats: of one iteration.
        grader: called with prompt, response and example; returns a grade or anything that `as_grade` accepts.

    Returns:
        iteration; prompt and response (each cut at 2,000 characters); label and correct (None without a grader);
        reward; advantage (mean over the response tokens); score (None if nothing scored the episode); weight; reasons
        and factors (who changed the weight, and by which factor, oldest first).
    """
    episodes, plan = cast(TextEpisodes, stats.episodes), stats.plan
    # Several callbacks may score. The last scores are the ones behind the final weights.
    scored = next((change.scores for change in reversed(plan.history) if change.scores is not None), None)
    advantages = masked_row_mean(values=episodes.advantages, mask=episodes.mask).tolist()
    rewards, weights = episodes.outcome_rewards.tolist(), plan.weights.tolist()
    scores = scored.tolist() if scored is not None else [None] * len(episodes)
    reasons, factors = reasons_of(plan), factors_of(plan)
    return [
        {
            "iteration": stats.iteration,
            "prompt": prompt[:MAX_TEXT],
            "response": response[:MAX_TEXT],
            # The grader reads the full response: a cut one could lose its answer.
            **_graded(grader, prompt, response, example),
            "reward": rewards[row],
            "advantage": advantages[row],
            "score": scores[row],
            "weight": weights[row],
            "reasons": reasons[row],
            "factors": factors[row],
        }
        for row, (prompt, response, example) in enumerate(
            zip(episodes.prompts, episodes.responses, episodes.examples, strict=True)
        )
    ]


def reasons_of(plan: UpdatePlan) -> list[list[str]]:
    """Return, for each row, the reasons of the changes that dropped or scaled it, oldest first."""
    return [[reason for reason, _ in changes] for changes in _changes(plan)]


def factors_of(plan: UpdatePlan) -> list[list[float]]:
    """Return, for each row, the factors of the changes that dropped or scaled it; parallel to `reasons_of`."""
    return [[factor for _, factor in changes] for changes in _changes(plan)]


def _changes(plan: UpdatePlan) -> list[list[tuple[str, float]]]:
    found: list[list[tuple[str, float]]] = [[] for _ in range(len(plan.weights))]
    for change in plan.history:
        for row, factor in enumerate(change.factors.tolist()):
            if factor != 1:  # a note has factors of 1: it explains, and changes no weight
                found[row].append((change.reason, factor))
    return found


def _graded(grader: Grader | None, prompt: str, response: str, example: Example) -> dict[str, str | bool | None]:
    if grader is None:
        return {"label": None, "correct": None}
    # Episodes carry rewards and no grades, so the grader reads the texts again.
    grade = call_grader(grader, prompt, response, example)
    return {"label": None if grade.label is None else label_text(grade.label), "correct": grade.correct}
