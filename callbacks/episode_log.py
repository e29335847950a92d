"""Write what was sampled, with reward, score and weight, next to the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning import Callback

from ippo_lightning.distributed.collectives import rank
from ippo_lightning.errors import UserError
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.records import TextEpisodes, UpdateStats
from ippo_lightning.tasks import call_grader, label_text

MAX_TEXT = 2000


class EpisodeLog(Callback):
    """Append every n-th iteration's episodes to `episodes.jsonl` in the run's folder (rank 0 writes its own).

    Args:
        every_n_iterations: 1 writes all of them.
        file_name: inside the run's folder.

    Raises:
        UserError: `every_n_iterations` below 1.
    """

    def __init__(self, every_n_iterations: int = 1, file_name: str = "episodes.jsonl") -> None:
        super().__init__()
        if every_n_iterations < 1:
            raise UserError(
                f"EpisodeLog.every_n_iterations: {every_n_iterations} is out of range; expected an integer >= 1"
            )
        self.every_n_iterations = every_n_iterations
        self.file_name = file_name

    def on_update_end(self, trainer: Any, pl_module: Any, stats: UpdateStats) -> None:
        """Write one line an episode."""
        if stats.iteration % self.every_n_iterations or rank() != 0:
            return
        path = Path(trainer.default_root_dir) / self.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(
                json.dumps(row) + "\n" for row in episode_rows(stats, grader=getattr(pl_module, "grader", None))
            )


def episode_rows(stats: UpdateStats, *, grader: Any = None) -> list[dict[str, Any]]:
    """Return one plain record an episode: text (cut at 2,000 characters), label, reward, advantage, score, weight.

    Args:
        stats: of one iteration.
        grader: labels each response; `label` is null without one, or if it gives no labels.
    """
    episodes, plan = cast(TextEpisodes, stats.episodes), stats.plan
    scored = next((change.scores for change in reversed(plan.history) if change.scores is not None), None)
    advantages = masked_row_mean(values=episodes.advantages, mask=episodes.mask).tolist()
    rewards, weights = episodes.outcome_rewards.tolist(), plan.weights.tolist()
    scores = scored.tolist() if scored is not None else [None] * len(episodes)
    return [
        {
            "iteration": stats.iteration,
            "prompt": prompt[:MAX_TEXT],
            "response": response[:MAX_TEXT],
            "label": _label(grader, prompt, response, example),
            "reward": rewards[row],
            "advantage": advantages[row],
            "score": scores[row],
            "weight": weights[row],
        }
        for row, (prompt, response, example) in enumerate(
            zip(episodes.prompts, episodes.responses, episodes.examples, strict=True)
        )
    ]


def _label(grader: Any, prompt: str, response: str, example: Mapping[str, Any]) -> str | None:
    label = None if grader is None else call_grader(grader, prompt, response, example).label
    return None if label is None else label_text(label)
