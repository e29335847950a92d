"""Pure functions: tensors in, tensors out, keyword-only."""

from ippo_lightning.maths.advantages import (
    discounted_returns,
    equal_rewards,
    gae,
    group_advantages,
    last_steps,
    leave_one_out_advantages,
    response_gae,
    rewards_differ,
)
from ippo_lightning.maths.gain import GainEstimate, cross_fitted_gain, pooled_gain
from ippo_lightning.maths.kl import KLEstimator, kl_estimate
from ippo_lightning.maths.log_probs import token_log_probs, token_log_probs_and_entropy
from ippo_lightning.maths.losses import (
    LossReduction,
    policy_loss_terms,
    reduce_terms,
    truncated_importance,
    update_diagnostics,
    value_loss_terms,
)
from ippo_lightning.maths.masked import (
    Moments,
    masked_mean,
    masked_moments,
    masked_row_mean,
    masked_row_sum,
    masked_sum,
    mean_and_variance,
    whiten,
)
from ippo_lightning.maths.ratios import capped_ratio_terms, clipped_surrogate, sequence_log_ratio
from ippo_lightning.maths.selection import (
    effective_sample_size,
    keep_above,
    keep_above_mean_reward,
    keep_at_least,
    keep_positive_advantage,
    keep_random,
    normalise_weights,
    score_power,
)
from ippo_lightning.maths.shaping import shape_rewards
from ippo_lightning.maths.variances import group_variances, order_by_variance

__all__ = [
    "GainEstimate",
    "KLEstimator",
    "LossReduction",
    "Moments",
    "capped_ratio_terms",
    "clipped_surrogate",
    "cross_fitted_gain",
    "discounted_returns",
    "effective_sample_size",
    "equal_rewards",
    "gae",
    "group_advantages",
    "group_variances",
    "keep_above",
    "keep_above_mean_reward",
    "keep_at_least",
    "keep_positive_advantage",
    "keep_random",
    "kl_estimate",
    "last_steps",
    "leave_one_out_advantages",
    "masked_mean",
    "masked_moments",
    "masked_row_mean",
    "masked_row_sum",
    "masked_sum",
    "mean_and_variance",
    "normalise_weights",
    "order_by_variance",
    "policy_loss_terms",
    "pooled_gain",
    "reduce_terms",
    "response_gae",
    "rewards_differ",
    "score_power",
    "sequence_log_ratio",
    "shape_rewards",
    "token_log_probs",
    "token_log_probs_and_entropy",
    "truncated_importance",
    "update_diagnostics",
    "value_loss_terms",
    "whiten",
]
