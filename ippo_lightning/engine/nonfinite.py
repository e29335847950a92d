"""NaN and infinity: the episode and the quantity are named; then the run stops, or the episode is left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ippo_lightning.records import Episodes

OnNonfinite = Literal["stop", "skip"]
Record = TypeVar("Record", bound=Episodes)
_LOG = logging.getLogger(__name__)
_NAMED = 3  # episodes in one message


def broken_episodes(episodes: Episodes, quantities: Sequence[str]) -> dict[int, str]:
    """Return the rows that contain NaN or infinity, with the first quantity that does.

    Args:
        episodes: any.
        quantities: names of tensor fields; only steps where the mask is True count.
    """
    found: dict[int, str] = {}
    for name in quantities:
        values: Tensor = getattr(episodes, name)
        broken = ~torch.isfinite(values)
        if episodes.columns()[name].axis is not None:
            # A model may compute NaN for padding, where it does no harm.
            broken = (broken & episodes.mask).any(dim=1)
        for row in broken.nonzero().flatten().tolist():
            found.setdefault(row, name)
    return found


def without_broken(
    episodes: Record, quantities: Sequence[str], *, rule: OnNonfinite, may_be_empty: bool = False
) -> Record:
    """Return the episodes whose quantities are finite.

    Args:
        episodes: of this rank.
        quantities: see `broken_episodes`.
        rule: `stop` raises, `skip` leaves broken episodes out with a warning.
        may_be_empty: whether all episodes may be left out, because this rank has others.

    Raises:
        FloatingPointError: an episode is broken and the rule is to stop, or all are broken; they are named.
    """
    found = broken_episodes(episodes, quantities)
    if not found:
        return episodes
    named = name_broken(episodes, found)
    # Without any episode, this rank could not take part in the collectives of the update.
    if rule == "stop" or (len(found) == len(episodes) and not may_be_empty):
        raise FloatingPointError(named)
    _LOG.warning("%s; left out", named)
    return episodes.select([row for row in range(len(episodes)) if row not in found])


def name_broken(episodes: Episodes, found: Mapping[int, str], *, numbers: Tensor | None = None) -> str:
    """Return one line that names broken episodes, their quantity, and where they come from.

    Args:
        episodes: with the rows of `found`.
        found: row to quantity.
        numbers: [rows] the number of each row in messages; by default its position.
    """
    called = range(len(episodes)) if numbers is None else numbers.tolist()
    named = [
        f"{quantity} of {episodes.row_name} {called[row]} ({episodes.describe(row)})"
        for row, quantity in sorted(found.items())
    ]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"NaN or infinity in {', '.join(named[:_NAMED])}{more}"
