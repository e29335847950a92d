"""Graders that reward an episode, and the guarded call of a user's own."""

from ippo_lightning.rewards.call import call_reward
from ippo_lightning.rewards.outcome import arithmetic_reward, gsm8k_reward

__all__ = ["arithmetic_reward", "call_reward", "gsm8k_reward"]
