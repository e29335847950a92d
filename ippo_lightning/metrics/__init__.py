"""Metrics of sampled reasoning."""

from ippo_lightning.metrics.functional import majority_vote, pass_at_k
from ippo_lightning.metrics.reasoning import ReasoningMetrics

__all__ = ["ReasoningMetrics", "majority_vote", "pass_at_k"]
