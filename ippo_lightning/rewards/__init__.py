"""Rewards of episodes: the guarded call of a user's own, the grade as a reward, and what keeps them out of a module."""

from ippo_lightning.rewards.call import call_reward
from ippo_lightning.rewards.grade import GradeReward, grade_reward
from ippo_lightning.rewards.held import HeldGrader, HeldReward
from ippo_lightning.rewards.protocol import Reward

__all__ = ["GradeReward", "HeldGrader", "HeldReward", "Reward", "call_reward", "grade_reward"]
