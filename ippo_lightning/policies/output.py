"""What a policy returns when it scores responses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
