"""Algorithms without a critic, as settings of a tiny module, and their losses written token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from training_parts import tiny_module, tiny_policy

from ippo_lightning.algorithms import (
    CISPOLoss,
    ClippedLoss,
    FixedKLController,
    GlobalBaseline,
    GroupBaseline,
    LeaveOneOut,
)
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.records import TextEpisodes

MAX_LENGTH = 8
SAMPLING = SamplingSettings(num_responses=2, max_new_tokens=MAX_LENGTH, stop_tokens=["1", "2", "3"])
"""Some responses end, and some are cut."""


@dataclass(frozen=True)
class Written:
    """The loss of a paper, as numbers of its formula."""

    low: float = 0.2
    high: float = 0.2
    ratio: str = "token"
    delta: float = math.inf
    beta: float = 0.0
    is_weighted: bool = False
    """Whether the divergence is multiplied by the ratio."""
    cap: float | None = None
    """Of CISPO."""
    divided_by: str = "length"
    """What the sum of a row is divided by: its `length`, `nothing`, or the longest possible response, `maximum`."""


@dataclass(frozen=True)
class Algorithm:
    """Settings of a module, and the formula that they stand for."""

    settings: dict[str, Any]
    update: dict[str, Any]
    written: Written


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm({"loss": ClippedLoss(beta=0.4, delta=1.5)}, {}, Written(beta=0.4, delta=1.5)),
    "bnpo": Algorithm({}, {"loss_reduction": "token_mean"}, Written(divided_by="nothing")),
    "dr_grpo": Algorithm(
        {"advantages": GroupBaseline(scale="none"), "loss": ClippedLoss(beta=0.4, ratio_in_divergence=True)},
        {"loss_reduction": "fixed_length"},
        Written(beta=0.4, is_weighted=True, divided_by="maximum"),
    ),
    "rloo": Algorithm(
        {"advantages": LeaveOneOut(), "loss": ClippedLoss(ratio="sequence_sum"), "kl_controller": FixedKLController()},
        {},
        Written(ratio="sum"),
    ),
    "dapo": Algorithm(
        {"loss": ClippedLoss(high=0.28)},
        {"loss_reduction": "rollout_token_mean", "mask_truncated": True},
        Written(high=0.28, divided_by="nothing"),
    ),
    "gspo": Algorithm(
        {"loss": ClippedLoss(low=3e-4, high=4e-4, ratio="sequence_mean")}, {}, Written(3e-4, 4e-4, ratio="mean")
    ),
    "cispo": Algorithm(
        {"loss": CISPOLoss(cap=1.1)}, {"loss_reduction": "token_mean"}, Written(cap=1.1, divided_by="nothing")
    ),
    "reinforce_plus_plus": Algorithm(
        {"advantages": GlobalBaseline(), "kl_controller": FixedKLController()}, {}, Written()
    ),
}


def critic_free_module(
    name: str, *, policy: CausalLMPolicy | None = None, update: dict[str, Any] | None = None, **changes: Any
) -> PPOModule:
    """A tiny module that trains by an algorithm of the table."""
    algorithm = ALGORITHMS[name]
    settings: dict[str, Any] = {
        "advantages": GroupBaseline(),
        "kl_controller": FixedKLController(coef=0.0),
        "sampling": SAMPLING,
        **algorithm.settings,
    }
    return tiny_module(
        policy=policy or tiny_policy(value="none"),
        update={**algorithm.update, **(update or {})},
        **{**settings, **changes},
    )


def loss_by_hand(written: Written, log_probs: Tensor, episodes: TextEpisodes, row: int) -> Tensor:
    """The loss of one row, token by token, without what its minibatch is divided by.

    Args:
        written: the formula.
        log_probs: of the row under the policy in training, shape [steps], with its graph.
        episodes: with the row.
        row: its number.
    """
    steps = episodes.mask[row].nonzero().flatten().tolist()
    old, reference = episodes.log_probs[row], episodes.ref_log_probs[row]
    total = sum((log_probs[step] - old[step] for step in steps), torch.zeros_like(log_probs.sum()))
    loss = torch.zeros_like(total)
    for step in steps:
        log_ratio = {"token": log_probs[step] - old[step], "sum": total, "mean": total / len(steps)}[written.ratio]
        ratio, advantage = log_ratio.exp(), episodes.advantages[row, step]
        if written.cap is not None:
            term = -min(float(ratio.detach()), written.cap) * advantage * log_probs[step]
        else:
            bounded = ratio.clamp(1 - written.low, 1 + written.high) * advantage
            term = -torch.minimum(ratio.clamp(max=written.delta) * advantage, bounded)
        distance = reference[step] - log_probs[step]
        divergence = (distance.exp() - distance - 1) * (ratio if written.is_weighted else 1)
        loss = loss + term + written.beta * divergence
    return loss / {"length": len(steps), "nothing": 1, "maximum": MAX_LENGTH}[written.divided_by]
