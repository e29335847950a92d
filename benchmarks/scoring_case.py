"""What the benchmarks of scoring work on: a small Llama, episodes with advantages, a direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ippo_lightning.influence import target_gradient
from ippo_lightning.maths import masked_row_mean, policy_loss_terms

VOCAB = 512


class Batch(NamedTuple):
    """Episodes of one micro-batch; the first quarter of the tokens is the prompt."""

    ids: Tensor
    """[rows, steps] int64."""
    mask: Tensor
    """[rows, steps] bool, True on response tokens."""
    old_log_probs: Tensor
    """[rows, steps - 1] nats, at the present parameters."""
    advantages: Tensor
    """[rows, steps - 1]."""
    known: Tensor
    """[rows] the losses at the present parameters."""


class ByLosses(nn.Module):
    """Makes a loss function out of a model and its loss, for torch.func."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Return the losses, shape [rows]."""
        return episode_losses(self.model, batch)


class Case(NamedTuple):
    """Everything one measurement needs."""

    model: nn.Module
    batches: list[Batch]
    direction: dict[str, Tensor]

    @property
    def by_losses(self) -> nn.Module:
        """The model as a function of a batch."""
        return ByLosses(self.model)

    @staticmethod
    def losses(model: nn.Module, batch: Batch) -> Tensor:
        """Return the clipped policy losses, shape [rows]."""
        return episode_losses(model, batch)

    @staticmethod
    def stacked(row: Any) -> Batch:
        """Turn one row of a batch into a batch of one."""
        return Batch(*(column.unsqueeze(0) for column in row))

    def first(self, episodes: int) -> Case:
        """Return the case with fewer episodes."""
        kept, left = [], episodes
        for batch in self.batches:
            kept.append(Batch(*(column[:left] for column in batch)))
            left -= len(kept[-1].ids)
            if left <= 0:
                break
        return self._replace(batches=kept)


def build_case(
    *, adapter: bool, tokens: int, episodes: int, hidden_size: int, num_layers: int, tokens_per_batch: int
) -> Case:
    """Build a model, episodes and a direction from fixed seeds.

    Args:
        adapter: LoRA of rank 16 on every linear layer, else all parameters train.
        tokens: of an episode, all alike, so that no way gains by padding.
        episodes: of the buffer.
        hidden_size: of the model.
        num_layers: of the model.
        tokens_per_batch: of a micro-batch.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=num_layers,
        num_attention_heads=max(hidden_size // 64, 2),
        max_position_embeddings=tokens,
    )
    model: nn.Module = LlamaForCausalLM(config)
    if adapter:
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    model.eval()
    size = max(tokens_per_batch // tokens, 1)
    # as the callback does: a small first pass
    first = min(8, episodes)
    sizes = [first, *(min(size, episodes - start) for start in range(first, episodes, size))]
    batches = [_batch(model, count, tokens) for count in sizes]
    return Case(model, batches, target_gradient(model, mean_loss, demonstrations_of(model, tokens)))


def demonstrations_of(model: nn.Module, tokens: int) -> list[Batch]:
    """Return the same demonstrations every time."""
    torch.manual_seed(1)
    return [_batch(model, 32, tokens)]


def episode_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the clipped policy loss of each episode, mean over its response tokens, shape [rows]."""
    terms = policy_loss_terms(
        log_probs=_log_probs(model, batch.ids),
        old_log_probs=batch.old_log_probs,
        advantages=batch.advantages,
        clip_low=0.2,
        clip_high=0.2,
    )
    return masked_row_mean(values=terms, mask=batch.mask[:, 1:])


def error_and_signs(scores: Tensor, exact: Tensor) -> tuple[float, float]:
    """Return the largest error as a fraction of the largest score, and the fraction of right signs."""
    error = float((scores - exact).abs().max() / exact.abs().max())
    return error, float((scores.sign() == exact.sign()).float().mean())


def _log_probs(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:].unsqueeze(-1)).squeeze(-1)


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean negative log-likelihood of demonstrations, shape []."""
    return -masked_row_mean(values=_log_probs(model, batch.ids), mask=batch.mask[:, 1:]).mean()


def _batch(model: nn.Module, episodes: int, tokens: int) -> Batch:
    ids = torch.randint(VOCAB, (episodes, tokens))
    mask = torch.zeros(episodes, tokens, dtype=torch.bool)
    mask[:, tokens // 4 :] = True
    with torch.no_grad():
        old = _log_probs(model, ids)
    # a reward per episode, a value per token: advantages share a sign within an episode, mostly
    advantages = torch.randn(episodes, 1) + 0.5 * torch.randn(episodes, tokens - 1)
    known = masked_row_mean(values=-advantages, mask=mask[:, 1:])
    return Batch(ids, mask, old, advantages, known)
