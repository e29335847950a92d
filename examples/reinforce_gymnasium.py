"""A project of its own: REINFORCE on CartPole, which knows nothing of this library, gains the influence filter.

The filter finds what it needs by name: `episode_losses`, `validation_loss`, and `buffer`, whose column `weights` it
writes before each `training_step`. The buffer must be there when the batch begins; for a rollout inside of
`training_step` see `apply` in docs/guides/attach.md.

python examples/reinforce_gymnasium.py
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

EPISODES, STEPS = 16, 200


class Reinforce(LightningModule):
    """Policy gradient with a baseline; one batch is one rollout of sixteen episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
        self.environments = gymnasium.make_vec("CartPole-v1", num_envs=EPISODES)
        self.buffer: dict[str, Tensor] = {}
        self.returns: list[float] = []

    @torch.no_grad()
    def collect(self) -> None:
        """Play each environment to its first end."""
        observation, _ = self.environments.reset(seed=torch.randint(2**31, ()).item())
        alive, steps = torch.ones(EPISODES, dtype=torch.bool), []
        while alive.any() and len(steps) < STEPS:
            state = torch.as_tensor(observation)
            action = torch.distributions.Categorical(logits=self.policy(state)).sample()
            steps.append((state, action, alive))
            observation, _, terminated, truncated, _ = self.environments.step(action.numpy())
            alive = alive & ~torch.as_tensor(terminated | truncated)
        states, actions, masks = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
        lengths = masks.sum(1).float()  # the return of CartPole
        advantages = (lengths - lengths.mean()) / (lengths.std() + 1e-6)
        self.returns.append(lengths.mean().item())
        columns = {"states": states, "actions": actions, "mask": masks, "advantages": advantages}
        self.buffer = {**columns, "weights": torch.ones(EPISODES)}

    def log_probs(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the log-prob of each action."""
        return self.policy(states).log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)

    def episode_losses(self, episodes: dict[str, Tensor]) -> Tensor:
        """Return one loss per episode."""
        log_probs = self.log_probs(episodes["states"], episodes["actions"]) * episodes["mask"]
        return -log_probs.sum(1) / episodes["mask"].sum(1) * episodes["advantages"]

    def validation_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss on good demonstrations."""
        return -self.log_probs(*batch).mean()

    def on_train_start(self) -> None:
        """Make the first rollout."""
        self.collect()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Learn from the buffer."""
        return (self.buffer["weights"] * self.episode_losses(self.buffer)).mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Make the next rollout with the new policy."""
        self.collect()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def demonstrations(count: int = 128) -> list[tuple[Tensor, Tensor]]:
    """Return states with what a person would do: push to the side to which the pole falls."""
    states = (torch.rand(count, 4) - 0.5) * torch.tensor([2.0, 2.0, 0.3, 2.0])
    return [(states, (states[:, 2] + 0.3 * states[:, 3] > 0).long())]


def main() -> None:
    """Train for thirty rollouts without and with the filter."""
    from ippo_lightning.callbacks import InfluenceFilter

    for name, callbacks in (("plain", []), ("filtered", [InfluenceFilter(demonstrations=demonstrations(), power=0)])):
        torch.manual_seed(0)
        module = Reinforce()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        trainer.fit(module, DataLoader(range(30)))
        print(f"{name}: return {module.returns[0]:.0f} at first, {sum(module.returns[-5:]) / 5:.0f} at last")


if __name__ == "__main__":
    main()
