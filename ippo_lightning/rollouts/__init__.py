"""From prompts or environments and a policy to episodes."""

from ippo_lightning.rollouts.activations import chosen_layer, response_activations
from ippo_lightning.rollouts.control import ControlRollouts
from ippo_lightning.rollouts.environments import EnvironmentSettings
from ippo_lightning.rollouts.played_episodes import play_episodes
from ippo_lightning.rollouts.prompt_values import prompt_values
from ippo_lightning.rollouts.text import (
    SampledResponses,
    collect_episodes,
    fill_log_probs,
    sample_episodes,
    sample_responses,
)

__all__ = [
    "ControlRollouts",
    "EnvironmentSettings",
    "SampledResponses",
    "chosen_layer",
    "collect_episodes",
    "fill_log_probs",
    "play_episodes",
    "prompt_values",
    "response_activations",
    "sample_episodes",
    "sample_responses",
]
