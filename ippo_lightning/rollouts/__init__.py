"""From prompts and a policy to episodes."""

from ippo_lightning.rollouts.text import collect_episodes, sample_episodes, sample_responses, score_episodes

__all__ = ["collect_episodes", "sample_episodes", "sample_responses", "score_episodes"]
