"""Attach the callback: a Lightning project with a loop of its own gains the influence filter.

The module below owes this library nothing but two methods, `episode_losses` and `validation_loss`, and one call: it
hands its episodes to the callbacks before it updates.

python examples/attach_the_callback.py
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ippo_lightning import TextEpisodes, UpdatePlan
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.engine import call_hook

NUM_TOKENS, LENGTH = 8, 4


class CountingPolicy(LightningModule):
    """REINFORCE on a made-up task: after a number, say the numbers that follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = nn.Sequential(
            nn.Embedding(NUM_TOKENS, 32), nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, NUM_TOKENS)
        )

    def log_probs(self, prompt_ids: Tensor, response_ids: Tensor) -> Tensor:
        """Return the log-prob of each response token, shape [rows, steps]."""
        before = torch.cat([prompt_ids[:, -1:], response_ids[:, :-1]], dim=1)
        return self.network(before).log_softmax(-1).gather(-1, response_ids[..., None]).squeeze(-1)

    def episode_losses(self, episodes: TextEpisodes) -> Tensor:
        """Return one loss an episode: what the influence filter scores."""
        return -(self.log_probs(episodes.prompt_ids, episodes.response_ids) * episodes.advantages).mean(dim=1)

    def validation_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss on good demonstrations."""
        return -self.log_probs(*batch).mean()

    def training_step(self, prompts: Tensor, batch_idx: int) -> None:
        """Roll out, let the callbacks plan, update once."""
        plan = UpdatePlan(episodes=self.collect(prompts))
        call_hook(self.trainer.callbacks, "on_rollout_end", self.trainer, self, plan)
        optimizer = self.optimizers()
        self.manual_backward((plan.weights * self.episode_losses(plan.episodes)).mean())
        optimizer.step()
        optimizer.zero_grad()
        kept = plan.metrics["influence/scored_kept_fraction"]
        print(f"reward {plan.episodes.outcome_rewards.mean():.2f}, kept {kept:.0%}")

    @torch.no_grad()
    def collect(self, prompts: Tensor) -> TextEpisodes:
        """Sample responses; the reward is the fraction of right numbers, with a lot of noise."""
        ids = prompts[:, None]
        for _ in range(LENGTH):
            ids = torch.cat([ids, torch.multinomial(self.network(ids[:, -1]).softmax(-1), 1)], dim=1)
        response = ids[:, 1:]
        right = (prompts[:, None] + torch.arange(1, LENGTH + 1)) % NUM_TOKENS
        reward = (response == right).float().mean(dim=1) + 0.5 * torch.randn(len(prompts))
        advantages = (reward - reward.mean())[:, None].expand(response.shape).clone()
        nothing = torch.zeros(response.shape)
        count = len(prompts)
        return TextEpisodes(
            prompt_ids=prompts[:, None],
            prompt_mask=torch.ones(count, 1, dtype=torch.bool),
            response_ids=response,
            mask=torch.ones(response.shape, dtype=torch.bool),
            truncated=torch.zeros(count, dtype=torch.bool),
            group=torch.arange(count),
            log_probs=self.log_probs(prompts[:, None], response),
            ref_log_probs=nothing,
            values=nothing,
            outcome_rewards=reward,
            rewards=nothing,
            advantages=advantages,
            returns=nothing,
            prompts=tuple(str(int(prompt)) for prompt in prompts),
            responses=tuple(str(row.tolist()) for row in response),
            examples=({},) * count,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-2)


def main() -> None:
    """Train for twelve iterations with the filter attached."""
    torch.manual_seed(0)
    starts = torch.arange(NUM_TOKENS)
    follow = (starts[:, None] + torch.arange(1, LENGTH + 1)) % NUM_TOKENS
    demonstrations: list[Any] = [(starts[:, None], follow)]
    prompts = DataLoader(torch.randint(NUM_TOKENS, (12 * 64,)), batch_size=64)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[InfluenceFilter(demonstrations=demonstrations)],
    )
    trainer.fit(CountingPolicy(), prompts)


if __name__ == "__main__":
    main()
