"""A drop rule of your own: keep the best response to each prompt. It needs no scores, so it costs nothing.

python examples/own_rule.py
"""

from __future__ import annotations

import tempfile

import torch
from lightning.fabric import Fabric, seed_everything
from torch import Tensor

from ippo_lightning import FabricLoop, PPOModule
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.data import TextDataModule, arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.selection import RolloutTable, SelectionRule
from ippo_lightning.tasks import ArithmeticTask


class BestOfGroup(SelectionRule):
    """Keep the responses with the highest reward of their prompt."""

    needs = frozenset({"rewards", "groups"})

    def keep(self, table: RolloutTable) -> Tensor:
        """Return which rows are kept, shape [rows], bool."""
        is_same_prompt = table.groups[:, None] == table.groups
        best = torch.where(is_same_prompt, table.rewards, -torch.inf).amax(dim=1)
        return table.rewards >= best


def main() -> None:
    """Run three iterations of PPO with the rule."""
    seed_everything(0, verbose=False)
    policy = CausalLMPolicy(
        config={"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
        tokenizer=arithmetic_tokenizer(),
    )
    module = PPOModule(
        policy=policy,
        reward=lambda prompts, responses, examples: [len(set(response)) / 10 for response in responses],
        sampling=SamplingSettings(num_responses=4, max_new_tokens=12),
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(run_dir=folder, max_iterations=3, evaluate_every_n_iterations=0, evaluate_first=False)
        data = TextDataModule(ArithmeticTask(num_train=64), batch_size=16)
        callbacks = [InfluenceFilter(rule=BestOfGroup())]
        FabricLoop(Fabric(accelerator="cpu"), module, data, callbacks=callbacks, settings=settings).fit()
    if module.last_stats is not None:
        print(f"kept {module.last_stats.kept_fraction:.0%} of the responses")


if __name__ == "__main__":
    main()
