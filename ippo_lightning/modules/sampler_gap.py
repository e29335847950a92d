"""The gap between the distribution that was sampled from and the policy: logged, and mended in the loss by weights."""

from __future__ import annotations

from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, gather_rows
from ippo_lightning.errors import UserError, require_range
from ippo_lightning.maths import truncated_importance
from ippo_lightning.policies import SamplingSettings
from ippo_lightning.records import Episodes, TextEpisodes


def check_importance_cap(cap: float | None, sampling: SamplingSettings, *, own_rollout: bool) -> None:
    """Refuse a cap that is out of range or has no effect.

    Args:
        cap: the largest weight, or None.
        sampling: of training.
        own_rollout: whether a subclass samples by itself; it may fill `sampler_gap` as it likes.

    Raises:
        UserError: the cap is below 1, or the sampler reports no log-probs.
    """
    if cap is None:
        return
    # Below 1, steps without any gap would get a smaller loss, which is a learning rate by another name.
    # An infinite weight times an advantage of 0 is NaN.
    require_range("model.importance_cap", cap, at_least=1, at_most=1e30)
    if not sampling.reports_log_probs and not own_rollout:
        raise UserError(
            f"model.importance_cap: {cap} has no effect, because sampler {sampling.sampler} reports no log-probs; "
            "set sampling.sampler to vllm or sampling.dtype to bfloat16, or leave it out"
        )


def importance_weighted(terms: Tensor, episodes: TextEpisodes, cap: float | None) -> Tensor:
    """Return the policy loss of each step times its truncated importance weight.

    Args:
        terms: the loss of each step, shape [rows, steps].
        episodes: the same rows, with `sampler_gap`.
        cap: the largest weight; None for no weights.
    """
    if cap is None:
        return terms
    return terms * truncated_importance(log_ratio=episodes.sampler_gap, cap=cap).to(terms)


def gap_metrics(episodes: Episodes, sampling: SamplingSettings) -> dict[str, float]:
    """Return the absolute gap over the steps of all ranks, in nats: its mean and its maximum; {} if it is unknown.

    Args:
        episodes: of this rank.
        sampling: of training.
    """
    # Decided by the settings and not by the numbers: all ranks must take part in the sums.
    if not sampling.reports_log_probs or not isinstance(episodes, TextEpisodes):
        return {}
    gap = episodes.sampler_gap.detach().abs().double()
    total, count = all_reduce_sum(gap.new_tensor([float(gap.sum()), float(episodes.num_steps)])).tolist()
    largest, _ = gather_rows(gap.amax(dim=1))
    return {"rollout/sampler_gap_mean": total / max(count, 1.0), "rollout/sampler_gap_max": float(largest.max())}
