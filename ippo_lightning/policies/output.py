"""What a policy returns when it scores responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ippo_lightning.maths.log_probs import token_log_probs, token_log_probs_and_entropy


# eq=False: comparing tensors returns a tensor, so a generated == would fail instead of answering
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyOutput:
    """The result of one forward pass over responses; all tensors are 0.0 off the response mask."""

    log_probs: Tensor
    """[rows, steps] nats, at the given temperature."""
    entropy: Tensor | None
    """[rows, steps] nats, of the distribution of each token; None if not requested."""
    values: Tensor | None
    """[rows, steps] the critic's estimate before each token; None if not requested."""


def log_probs_and_entropy(
    logits: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    *,
    temperature: float,
    with_entropy: Literal["differentiable", "detached"] | bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the log-prob of each response token, and the entropy of its distribution if requested.

    Args:
        logits: [rows, steps, vocab].
        response_ids: [rows, steps] int64.
        response_mask: [rows, steps] bool; both results are 0.0 where it is False.
        temperature: divides the logits.
        with_entropy: true is "differentiable", "detached" is cheaper.

    Returns:
        Log-probs and entropy or None, shape [rows, steps], nats.
    """
    entropy = None
    if with_entropy:
        log_probs, entropy = token_log_probs_and_entropy(
            logits=logits, ids=response_ids, temperature=temperature, detach_entropy=with_entropy == "detached"
        )
        # masked_fill and not a product: the model may compute NaN for padding, and 0 * NaN is NaN
        entropy = entropy.masked_fill(~response_mask, 0.0)
    else:
        log_probs = token_log_probs(logits=logits, ids=response_ids, temperature=temperature)
    return log_probs.masked_fill(~response_mask, 0.0), entropy
