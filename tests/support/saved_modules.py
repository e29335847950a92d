"""A module that a trainer has saved, for tests that build it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Trainer
from training_parts import tiny_data

from ippo_lightning.algorithms import AdaptiveKLController
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.modules import OptimizerSettings, PPOModule
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.rewards import CombinedReward, FormatReward, TaskGrade
from ippo_lightning.tasks import grade_arithmetic

SAMPLING = SamplingSettings(num_responses=2, max_new_tokens=8)


def trained(module: Any, folder: Path, **data: Any) -> Path:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=tiny_data(**data))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def ppo(policy: CausalLMPolicy, **changes: Any) -> PPOModule:
    settings: dict[str, Any] = {
        "reward": CombinedReward({"right": TaskGrade(), "form": FormatReward(["#"])}, weights={"form": 0.1}),
        "grader": grade_arithmetic,
        "sampling": SAMPLING,
        "update": UpdateSettings(num_epochs=1, minibatch_size=8, micro_batch_size=8),
        "kl_controller": AdaptiveKLController(coef=0.1, target=0.5, horizon=32),
        "optimizer": OptimizerSettings(learning_rate=1e-2, betas=(0.8, 0.9)),
    }
    return PPOModule(policy=policy, **{**settings, **changes})
