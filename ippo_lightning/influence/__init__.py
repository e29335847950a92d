"""Influence of episodes on a target: gradients, scores and their quality. Any `torch.nn.Module`; no trainer needed."""

from ippo_lightning.influence.directions import (
    Direction,
    OptimizerWrapper,
    add_weighted,
    halves_agreement,
    mean_direction,
    precondition,
    select_blocks,
)
from ippo_lightning.influence.health import (
    agree_to_drop,
    gradient_norm,
    score_intervals,
    score_quantiles,
    sign_agreement,
    sign_certainty,
)
from ippo_lightning.influence.methods import require_method
from ippo_lightning.influence.options import Method, Normalisation, TokenMethod
from ippo_lightning.influence.refusals import ChecksumError, CoverageError, NonFiniteScoreError
from ippo_lightning.influence.row_gradients import RowShare, gradients_of_rows, require_row_gradients
from ippo_lightning.influence.row_products import row_products
from ippo_lightning.influence.scores import EpisodeScores, influence_scores, score_episodes, token_scores
from ippo_lightning.influence.target_gradient import TargetGroups, target_gradient, target_gradient_groups
from ippo_lightning.influence.targets import action_target, return_target, sequence_target

__all__ = [
    "ChecksumError",
    "CoverageError",
    "Direction",
    "EpisodeScores",
    "Method",
    "NonFiniteScoreError",
    "Normalisation",
    "OptimizerWrapper",
    "RowShare",
    "TargetGroups",
    "TokenMethod",
    "action_target",
    "add_weighted",
    "agree_to_drop",
    "gradient_norm",
    "gradients_of_rows",
    "halves_agreement",
    "influence_scores",
    "mean_direction",
    "precondition",
    "require_method",
    "require_row_gradients",
    "return_target",
    "row_products",
    "score_episodes",
    "score_intervals",
    "score_quantiles",
    "select_blocks",
    "sequence_target",
    "sign_agreement",
    "sign_certainty",
    "target_gradient",
    "target_gradient_groups",
    "token_scores",
]
