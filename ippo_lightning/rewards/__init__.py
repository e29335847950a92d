"""Rewards of episodes: the guarded call of a user's own, the grade, a model, and sums of several."""

from ippo_lightning.rewards.call import CalledReward, call_in_parts, call_reward
from ippo_lightning.rewards.combined import CombinedReward
from ippo_lightning.rewards.grade import GradeReward, RewardGrader, TaskGrade, grade_reward
from ippo_lightning.rewards.held import HeldGrader, HeldReward
from ippo_lightning.rewards.protocol import Reward
from ippo_lightning.rewards.reward_model import RewardModel
from ippo_lightning.rewards.shaping import FormatReward, LengthPenalty, MissingEOSPenalty, OverlongPenalty

__all__ = [
    "CalledReward",
    "CombinedReward",
    "FormatReward",
    "GradeReward",
    "HeldGrader",
    "HeldReward",
    "LengthPenalty",
    "MissingEOSPenalty",
    "OverlongPenalty",
    "Reward",
    "RewardGrader",
    "RewardModel",
    "TaskGrade",
    "call_in_parts",
    "call_reward",
    "grade_reward",
]
