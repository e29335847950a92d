"""A loop written by hand, with a plain transformers model: only the scores come from this library.

Three lines are new in such a loop: the target gradient, the scores, the weights.

python examples/own_loop.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ippo_lightning.influence import influence_scores, target_gradient

VOCABULARY, PROMPT, LENGTH, EPISODES = 12, 2, 6, 128
PAD = VOCABULARY
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
)


def log_probs(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Return the log-prob of each response token, shape [rows, steps]."""
    logits = model(input_ids=ids).logits[:, PROMPT - 1 : -1]
    return logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None]).squeeze(-1)


def episode_losses(model: LlamaForCausalLM, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return PPO's clipped loss of each episode."""
    ids, old_log_probs, advantages = batch
    ratio = (log_probs(model, ids) - old_log_probs).exp()
    clipped = ratio.clamp(0.8, 1.2)
    return -torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None]).mean(dim=1)


def demonstration_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Return the likelihood loss of good responses."""
    return -log_probs(model, ids).mean()


def counting(starts: Tensor) -> Tensor:
    """Return what should be said: the numbers that follow."""
    return (starts[:, None] + torch.arange(PROMPT + LENGTH)) % VOCABULARY


def main() -> None:
    """Train for forty iterations on noisy rewards."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    model.generation_config.eos_token_id = None  # every response is six tokens long
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    demonstrations = counting(torch.arange(VOCABULARY))
    for iteration in range(40):
        prompts = counting(torch.randint(VOCABULARY, (EPISODES,)))
        with torch.no_grad():
            start = prompts[:, :PROMPT]
            ids = model.generate(
                start, attention_mask=torch.ones_like(start), max_new_tokens=LENGTH, do_sample=True, pad_token_id=PAD
            )
            old = log_probs(model, ids)
        right = (ids[:, PROMPT:] == prompts[:, PROMPT:]).float().mean(dim=1)
        rewards = right + 0.3 * torch.randn(EPISODES)
        batch = (ids, old, (rewards - rewards.mean()) / rewards.std())

        direction = target_gradient(model, demonstration_loss, [demonstrations])
        scores = influence_scores(model, episode_losses, [batch], direction)
        weights = (scores > 0).float()

        for _ in range(2):
            loss = (weights * episode_losses(model, batch)).sum() / weights.sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if iteration % 8 == 7:
            print(f"iteration {iteration}: {right.mean():.0%} right, kept {weights.mean():.0%}")


if __name__ == "__main__":
    main()
