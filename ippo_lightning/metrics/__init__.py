"""Metrics of sampled reasoning, and of episodes in environments: sums and counts that add up over batches and ranks."""

from ippo_lightning.metrics.answers import ExactMatch, MajorityVote, PassAtK
from ippo_lightning.metrics.faithfulness import UnfaithfulFraction
from ippo_lightning.metrics.functional import majority_vote, pass_at_k
from ippo_lightning.metrics.labels import LabelFractions
from ippo_lightning.metrics.learning_curves import Efficiency, efficiency, first_round
from ippo_lightning.metrics.lengths import LengthMetrics, ResponseLength, TruncatedFraction
from ippo_lightning.metrics.reasoning import ReasoningMetrics, reference_answers
from ippo_lightning.metrics.returns import MeanOfEpisodes, ReturnMetrics
from ippo_lightning.metrics.rewards import MeanReward, NamedMeans, RewardMetrics, named_rewards

__all__ = [
    "Efficiency",
    "ExactMatch",
    "LabelFractions",
    "LengthMetrics",
    "MajorityVote",
    "MeanOfEpisodes",
    "MeanReward",
    "NamedMeans",
    "PassAtK",
    "ReasoningMetrics",
    "ResponseLength",
    "ReturnMetrics",
    "RewardMetrics",
    "TruncatedFraction",
    "UnfaithfulFraction",
    "efficiency",
    "first_round",
    "majority_vote",
    "named_rewards",
    "pass_at_k",
    "reference_answers",
]
