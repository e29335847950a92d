"""GRPO with the KL divergence in the loss, as a subclass, with the influence filter and scores from one forward.

What is new is the class: a group baseline instead of a critic, and one more term of the loss. The minibatch loss, the
exact scores and the scores of one forward all read `loss_terms`, so nothing else has to be told. As settings, without a
class, the same loss is `loss=ClippedLoss(beta=0.04)`; see docs/guides/algorithms.md.

python examples/grpo.py
"""

from __future__ import annotations

import tempfile
from typing import Any

from lightning.fabric import Fabric, seed_everything
from torch import Tensor

from ippo_lightning import FabricLoop, PPOModule, TextEpisodes
from ippo_lightning.algorithms import FixedKLController, GroupBaseline
from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.data import TextDataModule, arithmetic_tokenizer
from ippo_lightning.maths import kl_estimate
from ippo_lightning.policies import CausalLMPolicy, PolicyOutput, SamplingSettings
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.tasks import ArithmeticTask


class GRPOModule(PPOModule):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

    def __init__(self, *, beta: float = 0.04, **settings: Any) -> None:
        super().__init__(advantages=GroupBaseline(), kl_controller=FixedKLController(coef=0.0), **settings)
        self.beta = beta

    def loss_terms(self, output: PolicyOutput, episodes: TextEpisodes) -> Tensor:
        """Add beta times the k3 estimate of the divergence from the reference to the clipped loss of each token."""
        kl = kl_estimate(log_probs=output.log_probs, ref_log_probs=episodes.ref_log_probs, estimator="k3")
        return super().loss_terms(output, episodes) + self.beta * kl


def main() -> None:
    """Train for two iterations on the grade of arithmetic chains."""
    seed_everything(1, verbose=False)
    tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    policy = CausalLMPolicy(config={**tiny, "num_attention_heads": 2}, tokenizer=arithmetic_tokenizer(), value="none")
    module = GRPOModule(policy=policy, sampling=SamplingSettings(num_responses=8, max_new_tokens=12))
    data = TextDataModule(ArithmeticTask(num_train=64, num_validation=8, num_test=8), batch_size=8)
    influence = InfluenceFilter(scoring=ScoringSettings(method="finite_difference"))
    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(run_dir=folder, max_iterations=2, evaluate_every_n_iterations=0, evaluate_first=False)
        fabric = Fabric(accelerator="cpu", devices=1)
        print(FabricLoop(fabric, module, data, callbacks=[influence], settings=settings).fit())


if __name__ == "__main__":
    main()
