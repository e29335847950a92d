"""Subclass the module: another reward and another loss, on a tiny model, in seconds.

python examples/subclass_the_module.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from lightning.fabric import Fabric, seed_everything
from torch import Tensor

from ippo_lightning import FabricLoop, PPOModule, TextEpisodes
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.data import TextDataModule, arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.records import Minibatch
from ippo_lightning.rewards import grade_reward
from ippo_lightning.run.fabric_loop import LoopSettings
from ippo_lightning.tasks import ArithmeticTask, grade_arithmetic


class ShortAnswersPPO(PPOModule):
    """PPO with two stages changed: tokens cost something, and demonstrations hold the policy (PPO-ptx)."""

    demonstrations: Mapping[str, Any]

    def compute_rewards(self, episodes: TextEpisodes) -> TextEpisodes:
        """Take a thousandth off each response token; everything else stays as in PPOModule."""
        rewarded = super().compute_rewards(episodes)
        return rewarded.evolve(rewards=rewarded.rewards - 0.001 * rewarded.mask)

    def minibatch_loss(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Add a tenth of the likelihood loss of good demonstrations (Ouyang et al. 2022, arXiv 2203.02155, eq. 2)."""
        loss, sums = super().minibatch_loss(minibatch)
        return loss + 0.1 * self.validation_loss(self.demonstrations), sums


def main() -> None:
    """Train for two iterations."""
    seed_everything(1, verbose=False)
    tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    policy = CausalLMPolicy(config={**tiny, "num_attention_heads": 2}, tokenizer=arithmetic_tokenizer())
    module = ShortAnswersPPO(
        policy=policy,
        reward=grade_reward(grade_arithmetic),
        grader=grade_arithmetic,
        sampling=SamplingSettings(num_responses=4, max_new_tokens=12),
    )
    data = TextDataModule(ArithmeticTask(num_train=64, num_validation=8, num_test=8), batch_size=8)
    data.setup("fit")
    module.demonstrations = next(iter(data.influence_dataloader()))
    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(run_dir=folder, max_iterations=2, evaluate_every_n_iterations=0, evaluate_first=False)
        loop = FabricLoop(
            Fabric(accelerator="cpu", devices=1), module, data, callbacks=[InfluenceFilter()], settings=settings
        )
        print(loop.fit())


if __name__ == "__main__":
    main()
