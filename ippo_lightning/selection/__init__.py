"""From the plan of an update to weights: what is scored, against which target, and which rule decides."""

from ippo_lightning.selection.activations import ActivationDifference, ForwardTarget
from ippo_lightning.selection.buffer_view import BufferView
from ippo_lightning.selection.group_rules import ByLength, DropEqualRewards, MaxRewardVariance
from ippo_lightning.selection.negatives import DropNegatives, DropRandom
from ippo_lightning.selection.prompt_rules import (
    IntermediateDifficulty,
    PromptRule,
    PromptTable,
    RandomPrompts,
    SampledRows,
    SourceBandit,
)
from ippo_lightning.selection.rollout_targets import AverageReward, LeaveOneOutMean, ReturnOfBuffer
from ippo_lightning.selection.round_scores import RoundScores
from ippo_lightning.selection.rules import AboveMeanReward, AdvantageSign, Influence, Random, SelectionRule
from ippo_lightning.selection.sequence_return import SequenceReturn
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.table import RolloutTable
from ippo_lightning.selection.targets import ActionLogProb, Demonstrations, OwnTerms, Target, TargetLoss
from ippo_lightning.selection.transitions import AdvantageHeuristic, TDPriority

__all__ = [
    "AboveMeanReward",
    "ActionLogProb",
    "ActivationDifference",
    "AdvantageHeuristic",
    "AdvantageSign",
    "AverageReward",
    "BufferView",
    "ByLength",
    "Demonstrations",
    "DropEqualRewards",
    "DropNegatives",
    "DropRandom",
    "ForwardTarget",
    "Influence",
    "IntermediateDifficulty",
    "LeaveOneOutMean",
    "MaxRewardVariance",
    "OwnTerms",
    "PromptRule",
    "PromptTable",
    "Random",
    "RandomPrompts",
    "ReturnOfBuffer",
    "RolloutTable",
    "RoundScores",
    "SampledRows",
    "ScoringSettings",
    "SelectionRule",
    "SequenceReturn",
    "SourceBandit",
    "TDPriority",
    "Target",
    "TargetLoss",
]
