"""LightningModules: supervised fine-tuning and PPO, under `lightning.Trainer` and under Fabric alike."""

from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.modules.policy_module import PolicyModule
from ippo_lightning.modules.ppo import PPOModule
from ippo_lightning.modules.sft import SFTModule

__all__ = ["OptimizerSettings", "PPOModule", "PolicyModule", "SFTModule"]
