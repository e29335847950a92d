"""Scores of the records of a kept iteration: those that the run made, or made again along a target of the buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ippo_lightning.analysis.repeated import RepeatedRounds
from ippo_lightning.errors import UserError
from ippo_lightning.records import ControlEpisodes, UpdatePlan
from ippo_lightning.records.kept_rounds import KeptRound
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection import AverageReward, ReturnOfBuffer, ScoringSettings, Target
from ippo_lightning.selection.grouped_gradients import take_gradients
from ippo_lightning.selection.module_interface import ModuleInterface
from ippo_lightning.selection.scorer import Scorer

TargetName = Literal["auto", "run", "return", "reward"]
_TARGETS: Mapping[str, Target] = {"return": ReturnOfBuffer(), "reward": AverageReward()}
_WORDS = {
    "return": "the return of the buffer (ReturnOfBuffer), at the parameters before the update",
    "reward": "the average reward of the buffer (AverageReward), at the parameters before the update",
}


@dataclass(frozen=True, kw_only=True)
class RecordScores:
    """The influence scores of an iteration, and what they are about."""

    scores: torch.Tensor
    """[rows] on the CPU."""
    finite: torch.Tensor
    """[rows] bool; False for a row whose score is NaN or infinite."""
    target: Literal["run", "return", "reward"]
    words: str
    """The target in a sentence's words."""


def score_records(rounds: RepeatedRounds, round_: KeptRound, *, target: TargetName = "auto") -> RecordScores:
    """Return the scores of all records of an iteration at the parameters before its update.

    Args:
        rounds: of the run.
        round_: one of its kept iterations.
        target: `run` for the scores that the run's own filter made; `return` and `reward` score again; `auto` is `run`
            if there are such scores, else `return` in environments and `reward` for responses.

    Raises:
        UserError: `run`, and the run made no scores; or a target that does not fit the rows.
    """
    kept = round_.scores
    if target == "run" and kept is None:
        raise UserError(
            f"target: run, and nothing scored the records of iteration {round_.iteration}; use return, or auto"
        )
    if target == "run" or (target == "auto" and kept is not None):
        assert kept is not None, "checked above"
        reason = next(change.reason for change in reversed(round_.history) if change.scores is not None)
        words = f"the target of the run's own {reason}, whose scores the run kept"
        return RecordScores(scores=kept.cpu(), finite=torch.isfinite(kept.cpu()), target="run", words=words)
    name = target
    if target == "auto":
        name = "return" if isinstance(round_.episodes, ControlEpisodes) else "reward"
    scores, finite = _scored(rounds, round_, _TARGETS[name])
    return RecordScores(scores=scores, finite=finite, target=name, words=_WORDS[name])  # type: ignore[arg-type]


def _scored(rounds: RepeatedRounds, round_: KeptRound, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    module, episodes = rounds.module, rounds.begin(round_).episodes
    with rounds.loop.fabric.autocast():
        # All rows of the buffer make the target, also those that a callback has dropped from the update.
        loss = target.loss(module, UpdatePlan(episodes=episodes), trainer=rounds.loop)
        size = PassSize("auto", field="target.max_tokens")
        gradients = take_gradients(module, loss, num_groups=1, size=size)
        scorer = Scorer(ScoringSettings(), interface=ModuleInterface(), skips_nonfinite=True)
        found = scorer.score(module, episodes, gradients, iteration=round_.iteration)
    return found.scores.detach().cpu(), ~found.broken.cpu()
