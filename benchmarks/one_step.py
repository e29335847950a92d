"""Ground truth for scores: what one real optimizer step does to the validation loss when an episode is left out."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ippo_lightning.influence import Normalisation, influence_scores, precondition, target_gradient
from ippo_lightning.maths import masked_row_mean, policy_loss_terms

VOCAB, TOKENS, PROMPT = 32, 10, 2
NUM_EPISODES, NUM_POISONED, NUM_DEMONSTRATIONS = 48, 10, 64


class Episodes(NamedTuple):
    """Sampled continuations of counting chains with an advantage for each token."""

    ids: Tensor
    """[rows, steps] int64; the first two tokens are the prompt."""
    advantages: Tensor
    """[rows, steps - 1] float64, of predicting each next token; 0 in the prompt."""
    log_probs: Tensor
    """[rows, steps - 1] nats, at the present parameters."""
    poisoned: Tensor
    """[rows] bool, True where the advantages' sign was flipped."""


class Scene(NamedTuple):
    """A model in the middle of training, episodes, demonstrations, and an optimizer with a state."""

    model: nn.Module
    episodes: Episodes
    demonstrations: Tensor
    adam: torch.optim.AdamW


def build_scene(seed: int) -> Scene:
    """Pretrain a tiny float64 Llama on counting chains for 60 steps, sample episodes, poison some.

    Args:
        seed: of everything.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
    )
    model = _in_double(LlamaForCausalLM(config))
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    for _ in range(60):
        chain_loss(model, chains(32)).backward()
        adam.step()
        adam.zero_grad()
    return Scene(model.eval(), _sampled(model), chains(NUM_DEMONSTRATIONS), adam)


def chains(count: int) -> Tensor:
    """Return chains that count up by 1, 2 or 3 modulo the vocabulary, shape [count, tokens], int64."""
    start, step = torch.randint(VOCAB, (count, 1)), torch.randint(1, 4, (count, 1))
    return (start + step * torch.arange(TOKENS)) % VOCAB


def chain_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the chains after their prompts, shape []."""
    return -_log_probs(model, ids)[:, PROMPT - 1 :].mean()


def episode_losses(model: nn.Module, episodes: Episodes) -> Tensor:
    """Return PPO's clipped policy loss of each episode, shape [rows]."""
    terms = policy_loss_terms(
        log_probs=_log_probs(model, episodes.ids),
        old_log_probs=episodes.log_probs,
        advantages=episodes.advantages,
        clip_low=0.2,
        clip_high=0.2,
    )
    mask = torch.zeros_like(terms, dtype=torch.bool)
    mask[:, PROMPT - 1 :] = True
    return masked_row_mean(values=terms, mask=mask)


def scores_of(scene: Scene, *, kind: str) -> Tensor:
    """Return scores that are `raw`, `adam` (scaled by the optimizer's state) or `cosine`, shape [rows]."""
    direction = target_gradient(scene.model, chain_loss, [scene.demonstrations])
    if kind == "adam":
        direction = precondition(direction, model=scene.model, optimizer=scene.adam)
    normalise: Normalisation = "cosine" if kind == "cosine" else "none"
    return influence_scores(scene.model, episode_losses, [scene.episodes], direction, normalise=normalise)


class Steps:
    """Validation losses after one optimizer step on any weighting of the episodes, always from the same state.

    Args:
        scene: left as it is.
        optimizer: `sgd`, or `adamw` with the state of the scene.
        learning_rate: of the step.
    """

    def __init__(self, scene: Scene, *, optimizer: str, learning_rate: float) -> None:
        self.scene = scene
        self.learning_rate = learning_rate
        self._optimizer = optimizer
        self._gradients = _episode_gradients(scene)

    def loss_after(self, weights: Tensor) -> float:
        """Return the validation loss after a step on sum_i weights_i g_i / N; the denominator never changes.

        Args:
            weights: shape [rows].
        """
        model, state = copy.deepcopy((self.scene.model, self.scene.adam.state_dict()))
        for parameter, gradients in zip(model.parameters(), self._gradients, strict=True):
            parameter.grad = torch.tensordot(weights, gradients, dims=1) / len(weights)
        if self._optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=self.learning_rate)
        else:
            optimizer = torch.optim.AdamW(model.parameters())
            optimizer.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = self.learning_rate
        optimizer.step()
        with torch.no_grad():
            return float(chain_loss(model, self.scene.demonstrations))

    def leave_one_out(self) -> Tensor:
        """Return how much higher the loss is without each episode, shape [rows]."""
        count = NUM_EPISODES
        whole = self.loss_after(torch.ones(count, dtype=torch.float64))
        without = 1 - torch.eye(count, dtype=torch.float64)
        return torch.tensor([self.loss_after(row) for row in without], dtype=torch.float64) - whole

    def half_batches(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random halves [count, episodes] of zeros and ones, and the loss after a step on each [count]."""
        halves = torch.zeros(count, NUM_EPISODES, dtype=torch.float64)
        for row in halves:
            row[torch.randperm(NUM_EPISODES, generator=generator)[: NUM_EPISODES // 2]] = 1
        return halves, torch.tensor([self.loss_after(row) for row in halves], dtype=torch.float64)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's correlation."""
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def slope(effects: Tensor, predicted: Tensor) -> float:
    """Return the slope of the least-squares line through the origin."""
    return float((effects @ predicted) / (predicted @ predicted))


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Return how often a positive scores below a negative: the area under the curve of finding positives by low scores.

    Args:
        scores: shape [rows].
        positive: shape [rows], bool.
    """
    low, high = scores[positive][:, None], scores[~positive][None, :]
    return float(((low < high).double() + 0.5 * (low == high).double()).mean())


def _in_double(model: nn.Module) -> nn.Module:
    """Make float64 of everything: the family's own norms would round to float32, which drowns a single episode."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                norm: Any = child
                setattr(parent, name, nn.RMSNorm(tuple(norm.weight.shape), eps=norm.variance_epsilon))
    return model.double()


def _log_probs(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:].unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def _sampled(model: nn.Module) -> Episodes:
    ids = chains(NUM_EPISODES)[:, :PROMPT]
    step = (ids[:, 1] - ids[:, 0]) % VOCAB
    for _ in range(TOKENS - PROMPT):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, torch.multinomial(logits.softmax(dim=-1), 1)], dim=1)
    correct = ((ids[:, 1:] - ids[:, :-1]) % VOCAB == step[:, None]).double()
    advantages = correct - correct[:, PROMPT - 1 :].mean()
    advantages[:, : PROMPT - 1] = 0
    poisoned = torch.zeros(NUM_EPISODES, dtype=torch.bool)
    poisoned[torch.randperm(NUM_EPISODES)[:NUM_POISONED]] = True
    advantages[poisoned] *= -1
    return Episodes(ids, advantages, _log_probs(model, ids), poisoned)


def _episode_gradients(scene: Scene) -> list[Tensor]:
    """Return each parameter's gradient by each episode, [rows, *parameter], by plain autograd."""
    losses = episode_losses(scene.model, scene.episodes)
    parameters = list(scene.model.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]
