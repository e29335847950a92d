"""Influence of episodes on a target: gradients, scores and their health. Any `torch.nn.Module`, no trainer."""

from ippo_lightning.influence.failures import ChecksumError, CoverageError, NonFiniteScoreError
from ippo_lightning.influence.health import gradient_norm, score_quantiles
from ippo_lightning.influence.scores import EpisodeScores, influence_scores, score_episodes, token_scores
from ippo_lightning.influence.target import target_gradient

__all__ = [
    "ChecksumError",
    "CoverageError",
    "EpisodeScores",
    "NonFiniteScoreError",
    "gradient_norm",
    "influence_scores",
    "score_episodes",
    "score_quantiles",
    "target_gradient",
    "token_scores",
]
