"""A PPO of stable-baselines3 gains the influence filter: a callback over its rollout buffer, and a buffer that drops.

After each rollout the callback scores the records against the return of the rollout itself, and drops the fraction of
the negative ones with the lowest scores (Hu et al. 2025, arXiv 2505.19281). The training code stays as it is.

pip install "ippo-lightning[stable-baselines3]"
python examples/filter_for_stable_baselines3.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from ippo_lightning.influence import influence_scores, target_gradient

Records = tuple[Tensor, Tensor, Tensor, Tensor]  # observations, actions, advantages, normalised advantages


class FilteredRolloutBuffer(RolloutBuffer):
    """The buffer of stable-baselines3, whose minibatches contain the kept records only."""

    kept: np.ndarray

    def reset(self) -> None:
        """Keep all records of the next rollout."""
        super().reset()
        self.kept = np.arange(self.buffer_size * self.n_envs)

    def flatten(self) -> None:
        """Give each column the shape [records, ...], as the first minibatch does."""
        if not self.generator_ready:
            for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True

    def get(self, batch_size: int | None = None) -> Iterator[Any]:
        """Yield minibatches in a random order."""
        self.flatten()
        order = np.random.permutation(self.kept)
        size = batch_size or len(order)
        yield from (self._get_samples(order[start : start + size]) for start in range(0, len(order), size))


class InfluenceFilter(BaseCallback):
    """Drops the records that work against the return of their rollout."""

    def __init__(self, fraction: float = 0.5) -> None:
        super().__init__()
        self.fraction = fraction

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        scores = scores_of(self.model)
        buffer, num_dropped = self.model.rollout_buffer, int(self.fraction * (scores < 0).sum())
        buffer.kept = scores.argsort(stable=True)[num_dropped:].sort().values.cpu().numpy()
        self.logger.record("influence/kept_fraction", len(buffer.kept) / len(scores))


def scores_of(model: PPO) -> Tensor:
    """Return the score of each record of the rollout, shape [records]."""
    records = records_of(model)
    direction = target_gradient(model.policy, minus_return, [records])
    direction.pop("log_std", None)  # it belongs to no layer, and the published scores leave it out
    return influence_scores(model.policy, record_losses, [records], direction)


def records_of(model: PPO) -> Records:
    """Return the whole buffer; advantages are normalised in parts of one minibatch, as an update does."""
    buffer = model.rollout_buffer
    buffer.flatten()
    observations, actions, *_, advantages, _ = buffer._get_samples(np.arange(len(buffer.kept)))
    if isinstance(model.action_space, Discrete):
        actions = actions.long().flatten()
    normalised = torch.cat([normalise(part) for part in advantages.split(model.batch_size)])
    return observations, actions, advantages, normalised


def normalise(advantages: Tensor) -> Tensor:
    """Return the advantages of a minibatch as an update sees them."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8) if len(advantages) > 1 else advantages


def record_losses(policy: ActorCriticPolicy, records: Records) -> Tensor:
    """Return PPO's loss of each record before the first step, where nothing is clipped, shape [records]."""
    observations, actions, _, normalised = records
    log_probs = policy.get_distribution(observations).log_prob(actions)
    return -(log_probs - log_probs.detach()).exp() * normalised


def minus_return(policy: ActorCriticPolicy, records: Records) -> Tensor:
    """Return the target: minus the mean of A * log pi(a|s)."""
    observations, actions, advantages, _ = records
    return -(policy.get_distribution(observations).log_prob(actions) * advantages).mean()


def main() -> None:
    """Train on CartPole with the filter."""
    model = PPO(
        "MlpPolicy", "CartPole-v1", n_steps=512, rollout_buffer_class=FilteredRolloutBuffer, seed=1, device="cpu"
    )
    for rollout in range(4):
        model.learn(512, callback=InfluenceFilter(), reset_num_timesteps=rollout == 0)
        kept = len(model.rollout_buffer.kept) / 512
        returns = np.mean([episode["r"] for episode in model.ep_info_buffer])
        print(f"rollout {rollout + 1}: return {returns:.0f}, kept {kept:.0%}")


if __name__ == "__main__":
    main()
