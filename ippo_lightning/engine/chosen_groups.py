"""The groups that an iteration trains on, where it samples more than these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ippo_lightning.records import Episodes

Record = TypeVar("Record", bound=Episodes)


@dataclass(frozen=True, kw_only=True)
class ChosenGroups(Generic[Record]):
    """What dynamic sampling or pilot responses have found, on this rank."""

    episodes: Record
    """Groups to train on."""
    sampled: Record
    """Everything that was sampled."""
    is_placeholder: bool = False
    """True if this rank has found nothing: `episodes` is then one group that must not be trained on."""
    metrics: dict[str, float]
    """For the log, over all ranks."""
