"""From prompts and a policy to episodes."""

from ippo_lightning.rollouts.text import (
    SampledResponses,
    collect_episodes,
    fill_log_probs,
    sample_episodes,
    sample_responses,
)

__all__ = ["SampledResponses", "collect_episodes", "fill_log_probs", "sample_episodes", "sample_responses"]
