"""What the modules' arguments are if they are None, by name: a configuration writes them out with all of their values.

`evaluation` of PPO is not among its parts: it follows `sampling`, whatever that is changed to.
"""

from __future__ import annotations

from collections.abc import Mapping

from ippo_lightning.algorithms import GAE, ClippedLoss, FixedKLController, ValueLoss
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.policies import SamplingSettings

BASE_PARTS: Mapping[str, type] = {"optimizer": OptimizerSettings}
TEXT_PARTS: Mapping[str, type] = {**BASE_PARTS, "evaluation": SamplingSettings}
PPO_PARTS: Mapping[str, type] = {
    **BASE_PARTS,
    "sampling": SamplingSettings,
    "update": UpdateSettings,
    "advantages": GAE,
    "loss": ClippedLoss,
    "value_loss": ValueLoss,
    "kl_controller": FixedKLController,
}
