"""An iteration as a file keeps it: its rows, what the update did with them, and the parameters before the update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.records.control import ControlEpisodes
from ippo_lightning.records.episodes import Episodes
from ippo_lightning.records.plain_values import plain, rebuilt
from ippo_lightning.records.plans import PlanChange, UpdatePlan
from ippo_lightning.records.text import TextEpisodes

FORMAT = 1
KNOWN: Mapping[str, Any] = {kind.__name__: kind for kind in (TextEpisodes, ControlEpisodes)}
"""Records of rows that a file may contain, by name."""


@dataclass(frozen=True, kw_only=True)
class KeptRound:
    """What repeats the update of one iteration of one rank; IIF calls an iteration a round."""

    iteration: int
    """Counted from 0."""
    num_ranks: int
    """Of the run."""
    episodes: Episodes
    """The rows of this rank with their advantages, on the CPU."""
    history: tuple[PlanChange, ...]
    """What callbacks decided about the rows, oldest first."""
    trains_policy: bool
    """False in the critic's warm-up."""
    parameters: Mapping[str, Tensor]
    """The trained ones before the update, by name; empty in the file of another rank than 0."""
    optimizer: Mapping[str, Any]
    """Its state before the update; empty in the file of another rank than 0."""
    scaler: Mapping[str, Any]
    """State of the gradient scaler before the update; empty without one."""
    progress: Mapping[str, Any]
    """What the module's `progress_state` returned after the rollout."""
    random: Mapping[str, Any]
    """The random streams of this rank before the first minibatch was drawn."""
    fingerprint: str
    """Of the frozen parameters; empty if unknown."""

    @property
    def weights(self) -> Tensor:
        """[rows] float32, the weights of the policy losses in the run."""
        weights = torch.ones(len(self.episodes), device=self.episodes.device)
        for change in self.history:
            weights = weights * change.factors
        return weights

    @property
    def scores(self) -> Tensor | None:
        """[rows] the last scores that a callback made, None without any."""
        return next((change.scores for change in reversed(self.history) if change.scores is not None), None)

    def plan(self, weights: Tensor | None = None) -> UpdatePlan:
        """Return the plan of an update with these rows.

        Args:
            weights: shape [rows], float, >= 0; None for those of the run.
        """
        plan = UpdatePlan(episodes=self.episodes, trains_policy=self.trains_policy)
        plan.scale(self.weights if weights is None else weights, reason="kept round")
        return plan

    def on(self, device: torch.device) -> KeptRound:
        """Return the same with rows, factors and scores on a device; parameters stay on the CPU."""
        history = tuple(
            replace(
                change,
                factors=change.factors.to(device),
                scores=None if change.scores is None else change.scores.to(device),
            )
            for change in self.history
        )
        return replace(self, episodes=self.episodes.to(device), history=history)

    def content(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        fields = {name: getattr(self, name) for name in _PLAIN}
        history = [
            {"reason": one.reason, "kind": one.kind, "factors": one.factors.cpu(),
             "scores": None if one.scores is None else one.scores.detach().cpu()}
            for one in self.history
        ]  # fmt: skip
        return {"format": FORMAT, **fields, "episodes": plain(self.episodes, KNOWN), "history": history}


_PLAIN: Mapping[str, Any] = {
    "iteration": int, "num_ranks": int, "trains_policy": bool, "parameters": dict, "optimizer": dict, "scaler": dict,
    "progress": dict, "random": dict, "fingerprint": str,
}  # fmt: skip


def kept_round(content: Any, *, source: object) -> KeptRound:
    """Return what `KeptRound.content` returned.

    Args:
        content: of a file, which anybody may have written.
        source: names the file in errors.

    Raises:
        UserError: it is of another format, or a part is missing or of another kind.
    """
    if not isinstance(content, dict) or _plain_format(content) != FORMAT:
        raise _refused(source, f"is no kept iteration of format {FORMAT}")
    wrong = [name for name, kind in _PLAIN.items() if not isinstance(content.get(name), kind)]
    if wrong or not isinstance(content.get("history"), list):
        raise _refused(source, f"has no usable {(wrong or ['history'])[0]}")
    if content["num_ranks"] < 1 or not all(isinstance(value, Tensor) for value in content["parameters"].values()):
        raise _refused(source, "has no usable num_ranks or parameters")
    episodes = rebuilt(content.get("episodes"), torch.device("cpu"), KNOWN, source=f"buffer: {source}")
    if not isinstance(episodes, Episodes):
        raise _refused(source, "has no usable episodes")
    for name in episodes.columns():
        column = getattr(episodes, name)
        # The returns and values of an estimator without a critic may be NaN.
        is_usable = name not in _FINITE or bool(torch.isfinite(column).all())
        if (column.dtype == torch.bool) != (name in _BOOLEAN) or not is_usable:
            raise _refused(source, f"has no usable {name}")
    history = tuple(_change(entry, len(episodes), source=source) for entry in content["history"])
    return KeptRound(episodes=episodes, history=history, **{name: content[name] for name in _PLAIN})


def _plain_format(content: dict[str, Any]) -> object:
    found = content.get("format")
    return found if type(found) is int else None


_BOOLEAN = frozenset({"mask", "prompt_mask", "truncated", "terminated", "done"})
"""Columns that are True or False."""
_FINITE = frozenset({"log_probs", "rewards", "outcome_rewards", "advantages"})


def _change(entry: Any, rows: int, *, source: object) -> PlanChange:
    kinds = ("drop", "scale", "note")
    if isinstance(entry, dict) and entry.get("kind") in kinds and isinstance(entry.get("reason"), str):
        factors, scores = entry.get("factors"), entry.get("scores")
        shapes = [one.shape for one in (factors, scores) if isinstance(one, Tensor)]
        if isinstance(factors, Tensor) and all(shape == (rows,) for shape in shapes):
            return PlanChange(
                reason=entry["reason"], kind=entry["kind"], factors=factors,
                scores=scores if isinstance(scores, Tensor) else None,
            )  # fmt: skip
    raise _refused(source, "has no usable history")


def _refused(source: object, reason: str) -> UserError:
    return UserError(f"buffer: {source} {reason}; expected a file of buffers/ of a run")
