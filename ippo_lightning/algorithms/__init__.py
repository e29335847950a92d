"""An algorithm is an advantage estimator and a policy loss, with a penalty for leaving the reference."""

from ippo_lightning.algorithms.advantages import (
    GAE,
    AdvantageEstimator,
    GlobalBaseline,
    GroupBaseline,
    LeaveOneOut,
)
from ippo_lightning.algorithms.kl import AdaptiveKLController, FixedKLController
from ippo_lightning.algorithms.losses import CISPOLoss, ClippedLoss, PolicyLoss, ValueLoss

__all__ = [
    "GAE",
    "AdaptiveKLController",
    "AdvantageEstimator",
    "CISPOLoss",
    "ClippedLoss",
    "FixedKLController",
    "GlobalBaseline",
    "GroupBaseline",
    "LeaveOneOut",
    "PolicyLoss",
    "ValueLoss",
]
