"""NaN and infinity: the episode and the quantity are named, and then the run stops or the episode goes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ippo_lightning.records import Episodes

OnNonfinite = Literal["stop", "skip"]
_LOG = logging.getLogger(__name__)
_NAMED = 3  # episodes in one message
_LONGEST = 60  # characters of a prompt in a message


def broken_episodes(episodes: Episodes, quantities: Sequence[str]) -> dict[int, str]:
    """Return the rows that hold NaN or infinity, with the first quantity that does.

    Args:
        episodes: any.
        quantities: names of tensors of `Episodes`; those of tokens count on response tokens only.
    """
    found: dict[int, str] = {}
    for name in quantities:
        values: Tensor = getattr(episodes, name)
        broken = ~torch.isfinite(values)
        if values.ndim == 2:
            broken = (broken & episodes.response_mask).any(dim=1)
        for row in broken.nonzero().flatten().tolist():
            found.setdefault(row, name)
    return found


def without_broken(episodes: Episodes, quantities: Sequence[str], *, rule: OnNonfinite) -> Episodes:
    """Return the episodes whose quantities are finite.

    Args:
        episodes: of this rank.
        quantities: see `broken_episodes`.
        rule: `stop` raises, `skip` leaves broken episodes out with a warning.

    Raises:
        FloatingPointError: an episode is broken and the rule is to stop, or none is whole; they are named.
    """
    found = broken_episodes(episodes, quantities)
    if not found:
        return episodes
    named = name_broken(episodes, found)
    if rule == "stop" or len(found) == len(episodes):
        raise FloatingPointError(named)
    _LOG.warning("%s; left out", named)
    return episodes.select([row for row in range(len(episodes)) if row not in found])


def name_broken(episodes: Episodes, found: Mapping[int, str], *, numbers: Tensor | None = None) -> str:
    """Return one line that names broken episodes, their quantity and their prompt.

    Args:
        episodes: with the rows that `found` speaks of.
        found: row to quantity.
        numbers: [rows] what each row is called; by default its place.
    """
    called = range(len(episodes)) if numbers is None else numbers.tolist()
    named = [
        f"{quantity} of episode {called[row]} (prompt {episodes.prompts[row][:_LONGEST]!r})"
        for row, quantity in sorted(found.items())
    ]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"NaN or infinity in {', '.join(named[:_NAMED])}{more}"
