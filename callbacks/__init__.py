"""Callbacks that act on a PPO iteration, for `FabricLoop`, `lightning.Trainer`, or a loop of your own."""

from ippo_lightning.callbacks.completions_table import CompletionsTable
from ippo_lightning.callbacks.episode_frames import EpisodeFrames
from ippo_lightning.callbacks.episode_log import EpisodeLog
from ippo_lightning.callbacks.gain_stopping import GainStopping
from ippo_lightning.callbacks.influence_filter import InfluenceFilter
from ippo_lightning.callbacks.intrinsic_stopping import IntrinsicStopping
from ippo_lightning.callbacks.prompt_selection import PromptSelection
from ippo_lightning.selection import ScoringSettings

__all__ = [
    "CompletionsTable",
    "EpisodeFrames",
    "EpisodeLog",
    "GainStopping",
    "InfluenceFilter",
    "IntrinsicStopping",
    "PromptSelection",
    "ScoringSettings",
]
