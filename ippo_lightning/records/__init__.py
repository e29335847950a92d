"""The records that pass between the rooms: episodes, the plan of an update, and what the update did."""

from ippo_lightning.records.episodes import (
    EPISODE_TENSORS,
    Episodes,
    Minibatch,
    Reweighting,
    UpdatePlan,
    UpdateStats,
    concat_episodes,
)

__all__ = [
    "EPISODE_TENSORS",
    "Episodes",
    "Minibatch",
    "Reweighting",
    "UpdatePlan",
    "UpdateStats",
    "concat_episodes",
]
