"""The behaviour that is traced if none is given: the one that a run made more probable."""

from __future__ import annotations

import torch
from torch import Tensor

from ippo_lightning.analysis.behaviours import Behaviour, behaviour_of_record
from ippo_lightning.analysis.repeated import RepeatedRounds
from ippo_lightning.analysis.row_passes import row_log_probs
from ippo_lightning.records import ControlEpisodes, Episodes, TextEpisodes
from ippo_lightning.records.kept_rounds import KeptRound

FREQUENT = 0.01
"""Of the rows of an iteration."""
MOST_CANDIDATES = 512


def choose_behaviour(rounds: RepeatedRounds, first: KeptRound, last: KeptRound) -> Behaviour:
    """Return the record of the last iteration whose probability rose most, among those that occur often.

    Args:
        rounds: of the run.
        first: the first traced iteration.
        last: the last traced iteration.
    """
    rows = last.episodes
    representatives, counts = _different_rows(rows)
    often = counts >= max(2, FREQUENT * len(rows))
    are_frequent = bool(often.any())
    chosen = (representatives[often] if are_frequent else representatives)[:MOST_CANDIDATES]
    candidates = rows.select(chosen)
    before, after = (_values(rounds, round_, candidates) for round_ in (first, last))
    best = int((after - before).argmax())
    among = (
        f"the {len(chosen)} kinds that make up at least {100 * FREQUENT:g} % of its records each"
        if are_frequent
        else f"its {'first ' if len(chosen) < len(representatives) else ''}{len(chosen)} different records, none of "
        "which occurs often"
    )
    origin = (
        f"No behaviour was given, so this one was chosen: it became more probable since iteration {first.iteration} "
        f"than any other of the records of iteration {last.iteration} (row {int(chosen[best])}; compared were {among})."
    )
    return behaviour_of_record(candidates.select([best]), module=rounds.module, origin=origin)


def _different_rows(rows: Episodes) -> tuple[Tensor, Tensor]:
    """Return the first row of each kind, and how many there are of it, the most frequent first."""
    places: dict[object, list[int]] = {}
    for row, key in enumerate(_keys(rows)):
        places.setdefault(key, []).append(row)
    found = sorted(places.values(), key=len, reverse=True)
    return torch.tensor([one[0] for one in found]), torch.tensor([len(one) for one in found])


def _keys(rows: Episodes) -> list[object]:
    if isinstance(rows, TextEpisodes):
        return list(zip(rows.prompts, rows.responses, strict=True))
    assert isinstance(rows, ControlEpisodes), "a kept round has no other rows"
    both = (rows.observations.flatten(1), rows.actions.flatten(1))
    return [tuple(part.tobytes() for part in row) for row in zip(*(one.cpu().numpy() for one in both), strict=True)]


def _values(rounds: RepeatedRounds, round_: KeptRound, rows: Episodes) -> Tensor:
    """Return the probability of each row at the parameters before the update; per token of a response."""
    rounds.begin(round_)
    found = row_log_probs(rounds.module, rows.to(rounds.loop.fabric.device))
    if isinstance(rows, TextEpisodes):
        return (found / rows.lengths.clamp(min=1)).exp()
    is_density = rounds.module.policy.actions.num_actions is None
    return found if is_density else found.exp()
