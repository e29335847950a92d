"""A behaviour: one action in one observation, or one response to one prompt, and how probable it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ippo_lightning.analysis.behaviour_words import (
    Named,
    NamedPair,
    NamedRecord,
    NamedResponse,
    NamedTransition,
)
from ippo_lightning.analysis.rounds import read_round
from ippo_lightning.errors import UserError
from ippo_lightning.policies import EncodedResponses
from ippo_lightning.records import ControlEpisodes, Episodes, TextEpisodes, UpdatePlan
from ippo_lightning.selection import Target, TargetLoss

Measure = Literal["probability", "log density", "probability per token"]
_LONGEST = 60
_GIVEN = "The behaviour is the one that was given."


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What became more probable."""

    record: Episodes
    """One row."""
    words: str
    """In a few words, for a sentence; perhaps with text of a model."""
    origin: str
    """How it was chosen, in a sentence."""
    measure: Measure
    """What a curve shows of it."""

    def value(self, log_prob: float) -> float:
        """Return what a curve shows.

        Args:
            log_prob: of all steps of the behaviour, nats.
        """
        if self.measure == "log density":
            return log_prob
        steps = int(self.record.mask.sum()) if self.measure == "probability per token" else 1
        return math.exp(log_prob / max(steps, 1))


@dataclass(frozen=True, kw_only=True)
class RecordLogProb(Target):
    """Minus log pi of one record: what made exactly this action, or this response, more probable?

    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), f_action, with the opposite sign.

    Args:
        record: one row.
    """

    record: Episodes

    def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
        """Return minus the log-probability of the record."""
        return TargetLoss(_minus_log_prob, [self.record.to(plan.episodes.device)])


def log_prob(module: Any, record: Episodes) -> Tensor:
    """Return log pi of a record at the current parameters, nats, shape [], with its graph.

    Args:
        module: of the run; a language model answers at the temperature of sampling.
        record: one row.
    """
    found: Tensor = module.score(record).log_probs
    return found.masked_fill(~record.mask, 0.0).sum()


def _minus_log_prob(module: Any, record: Episodes) -> Tensor:
    return -log_prob(module, record)


def behaviour_of_record(record: Episodes, *, module: Any, origin: str) -> Behaviour:
    """Return a row as a behaviour.

    Args:
        record: one row, on any device.
        module: of the run.
        origin: how it was chosen.
    """
    return Behaviour(record=record, words=words_of(record, 0), origin=origin, measure=_measure(module, record))


def find_behaviour(named: Named, *, module: Any, folder: Path, like: Episodes) -> Behaviour:
    """Return the behaviour that a user named.

    Args:
        named: what the user wrote.
        module: of the run.
        folder: of the run.
        like: rows of the run.

    Raises:
        UserError: it does not fit the run.
    """
    finders: dict[type, Callable[..., Behaviour]] = {
        NamedPair: _of_pair, NamedRecord: _of_record, NamedTransition: _of_transition, NamedResponse: _of_response,
    }  # fmt: skip
    return finders[type(named)](named, module=module, folder=folder, like=like)


def check_record(named: NamedRecord, folder: Path) -> Episodes:
    """Return the row of a kept iteration.

    Args:
        named: iteration and row.
        folder: of the run.

    Raises:
        UserError: the iteration was not kept, or has fewer rows.
    """
    rows = read_round(folder, named.iteration).episodes
    if named.row >= len(rows):
        raise UserError(
            f"behaviour: row {named.row} of iteration {named.iteration} does not exist; expected 0 to {len(rows) - 1}"
        )
    return rows.select([named.row])


def _of_record(named: NamedRecord, *, module: Any, folder: Path, like: Episodes) -> Behaviour:
    origin = f"The behaviour is row {named.row} of iteration {named.iteration}, as given."
    return behaviour_of_record(check_record(named, folder), module=module, origin=origin)


def _of_pair(named: NamedPair, *, module: Any, folder: Path, like: Episodes) -> Behaviour:
    found = f"{named.observation}:{named.action}"
    spec = getattr(module.policy, "observations", None)
    if not isinstance(like, ControlEpisodes) or spec is None or spec.num_values is None or like.actions.dim() != 2:
        raise UserError(
            f"behaviour: {found} is for environments whose observations and actions are numbers from a list; use "
            "record:ITERATION:ROW, or a JSON file"
        )
    limits = {"observation": spec.num_values, "action": module.policy.actions.num_actions}
    for name, limit in limits.items():
        if getattr(named, name) >= limit:
            raise UserError(f"behaviour: {name} {getattr(named, name)} does not exist; expected 0 to {limit - 1}")
    pair = NamedTransition(observation=(float(named.observation),), action=(float(named.action),))
    return _of_transition(pair, module=module, folder=folder, like=like)


def _of_transition(named: NamedTransition, *, module: Any, folder: Path, like: Episodes) -> Behaviour:
    if not isinstance(like, ControlEpisodes):
        raise UserError("behaviour: an observation and an action are for environments; give prompt and response")
    record = like.select([0])
    limits = {
        "observation": getattr(getattr(module.policy, "observations", None), "num_values", None),
        "action": module.policy.actions.num_actions,
    }
    for name, limit in limits.items():
        wrong = [one for one in getattr(named, name) if limit is not None and not (one % 1 == 0 and 0 <= one < limit)]
        if wrong:
            raise UserError(f"behaviour: {name} {wrong[0]:g} does not exist; expected 0 to {limit - 1}")
    changes = {
        "observations": _shaped(named.observation, record.observations, name="observation"),
        "actions": _shaped(named.action, record.actions, name="action"),
        "mask": torch.ones_like(record.mask),
    }
    return behaviour_of_record(record.evolve(**changes), module=module, origin=_GIVEN)


def _shaped(numbers: tuple[float, ...], column: Tensor, *, name: str) -> Tensor:
    if len(numbers) != column.numel():
        raise UserError(
            f"behaviour: {name} has {len(numbers)} numbers; expected {column.numel()}, shape {list(column.shape[2:])}"
        )
    return torch.tensor(numbers, dtype=torch.float64).to(column).reshape(column.shape)


def _of_response(named: NamedResponse, *, module: Any, folder: Path, like: Episodes) -> Behaviour:
    if not isinstance(like, TextEpisodes):
        raise UserError("behaviour: a prompt and a response are for language models; give observation and action")
    encoded = module.encode_demonstrations({"prompts": [named.prompt], "responses": [named.response]})
    record = _as_row(EncodedResponses(*(one.cpu() for one in encoded)), like)
    record = record.evolve(prompts=(named.prompt,), responses=(named.response,))
    return behaviour_of_record(record, module=module, origin=_GIVEN)


def _as_row(encoded: EncodedResponses, like: TextEpisodes) -> TextEpisodes:
    """Return a written response as a row; whatever a rollout would know of it is 0."""
    steps = encoded.response_mask.shape[1]
    row = like.select([0])
    blank = {
        name: getattr(row, name).new_zeros(1, steps) for name, layout in row.columns().items() if layout.axis == "steps"
    }
    blank |= {
        "mask": encoded.response_mask, "response_ids": encoded.response_ids,
        "prompt_ids": encoded.prompt_ids, "prompt_mask": encoded.prompt_mask,
    }  # fmt: skip
    return row.evolve(**blank, examples=({},))


def _measure(module: Any, record: Episodes) -> Measure:
    if isinstance(record, TextEpisodes):
        return "probability per token"
    return "probability" if module.policy.actions.num_actions is not None else "log density"


def words_of(rows: Episodes, row: int) -> str:
    """Return a row in a few words, perhaps of a model.

    Args:
        rows: of a run.
        row: its position.
    """
    if isinstance(rows, TextEpisodes):
        return f"the response {_short(rows.responses[row])!r} to {_short(rows.prompts[row])!r}"
    assert isinstance(rows, ControlEpisodes), "a kept round has no other rows"
    seen = rows.observations[row, 0]
    if seen.numel() > _MOST_NUMBERS:
        where = f"an observation of {'x'.join(map(str, seen.shape))} numbers"
    else:
        where = f"{'state' if seen.numel() == 1 else 'observation'} {_listed(seen)}"
    return f"action {_listed(rows.actions[row, 0])} in {where}"


def _short(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _LONGEST else f"{joined[: _LONGEST - 1]}…"


def _listed(value: Tensor) -> str:
    if value.numel() == 1:
        return f"{value.item():.4g}"
    if value.numel() > _MOST_NUMBERS:
        return f"of {'x'.join(map(str, value.shape))} numbers"
    return "[" + ", ".join(f"{number:.3g}" for number in value.flatten().tolist()) + "]"


_MOST_NUMBERS = 8
