"""The records that pass between the rooms: episodes, the plans of a rollout and an update, and what the update did."""

from ippo_lightning.records.control import ControlEpisodes
from ippo_lightning.records.episodes import Episodes
from ippo_lightning.records.layer_rows import LayerRows
from ippo_lightning.records.passes import Pass, cut_rows, passes
from ippo_lightning.records.plans import Batch, Minibatch, PlanChange, RolloutPlan, UpdatePlan, UpdateStats
from ippo_lightning.records.rendered import RenderedEpisode
from ippo_lightning.records.text import Example, TextEpisodes

__all__ = [
    "Batch",
    "ControlEpisodes",
    "Episodes",
    "Example",
    "LayerRows",
    "Minibatch",
    "Pass",
    "PlanChange",
    "RenderedEpisode",
    "RolloutPlan",
    "TextEpisodes",
    "UpdatePlan",
    "UpdateStats",
    "cut_rows",
    "passes",
]
