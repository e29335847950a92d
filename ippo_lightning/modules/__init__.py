"""LightningModules for language models and for environments, under `lightning.Trainer` and under Fabric alike."""

from ippo_lightning.modules.base import BaseModule
from ippo_lightning.modules.control import ControlPPOModule
from ippo_lightning.modules.evaluated import EvaluatedModule
from ippo_lightning.modules.failed_step_file import read_failed_step
from ippo_lightning.modules.failed_steps import Diagnosis, FailedStepError, replay_failed_step
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.modules.ppo import PPOModule
from ippo_lightning.modules.sft import SFTModule
from ippo_lightning.modules.text import TextModule

__all__ = [
    "BaseModule",
    "ControlPPOModule",
    "Diagnosis",
    "EvaluatedModule",
    "FailedStepError",
    "OptimizerSettings",
    "PPOModule",
    "SFTModule",
    "TextModule",
    "read_failed_step",
    "replay_failed_step",
]
