"""From the plan of an update to weights: what is scored, against which target, and which rule decides."""

from ippo_lightning.selection.buffer_view import BufferView
from ippo_lightning.selection.negatives import DropNegatives, DropRandom
from ippo_lightning.selection.round_scores import RoundScores
from ippo_lightning.selection.rules import AboveMeanReward, AdvantageSign, Influence, Random, SelectionRule
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.table import RolloutTable
from ippo_lightning.selection.targets import ActionLogProb, Demonstrations, ReturnOfBuffer, Target, TargetLoss
from ippo_lightning.selection.transitions import AdvantageHeuristic, TDPriority

__all__ = [
    "AboveMeanReward",
    "ActionLogProb",
    "AdvantageHeuristic",
    "AdvantageSign",
    "BufferView",
    "Demonstrations",
    "DropNegatives",
    "DropRandom",
    "Influence",
    "Random",
    "ReturnOfBuffer",
    "RolloutTable",
    "RoundScores",
    "ScoringSettings",
    "SelectionRule",
    "TDPriority",
    "Target",
    "TargetLoss",
]
