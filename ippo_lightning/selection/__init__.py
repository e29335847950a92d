"""From the plan of an update to weights: what is scored, against which target, and which rule decides."""

from ippo_lightning.selection.buffer_view import BufferView
from ippo_lightning.selection.negatives import DropNegatives, DropRandom
from ippo_lightning.selection.rules import AboveMeanReward, AdvantageSign, Influence, Random, SelectionRule
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.table import RolloutTable
from ippo_lightning.selection.targets import Demonstrations, ReturnOfBuffer, Target, TargetLoss

__all__ = [
    "AboveMeanReward",
    "AdvantageSign",
    "BufferView",
    "Demonstrations",
    "DropNegatives",
    "DropRandom",
    "Influence",
    "Random",
    "ReturnOfBuffer",
    "RolloutTable",
    "ScoringSettings",
    "SelectionRule",
    "Target",
    "TargetLoss",
]
