"""A user's reward function, called with care."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError


def call_reward(
    reward: Callable[..., Any],
    *,
    prompts: Sequence[str],
    responses: Sequence[str],
    examples: Sequence[Mapping[str, Any]],
    allow_nonfinite: bool = False,
) -> Tensor:
    """Return what a reward function says, checked.

    Args:
        reward: called as `reward(prompts, responses, examples)`.
        prompts: one an episode.
        responses: one an episode.
        examples: one an episode.
        allow_nonfinite: whether NaN and infinity are the caller's business.

    Returns:
        Shape [rows], float32, on the CPU.

    Raises:
        UserError: it raised, gave another number of rewards, or one that is no finite number.
    """
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    try:
        given = reward(prompts, responses, examples)
    except Exception as error:  # whatever a user's code throws is reported, with its cause attached
        said = " ".join(str(error).split())[:200]
        raise UserError(f"model.reward: {name} raised {type(error).__name__}: {said}") from error
    try:
        rewards = torch.as_tensor(given, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"model.reward: {name} returned {type(given).__name__}; expected {len(prompts)} numbers"
        ) from error
    if rewards.shape not in ((len(prompts),), (len(prompts), 1)):
        raise UserError(
            f"model.reward: {name} returned shape {tuple(rewards.shape)}; "
            f"expected {len(prompts)} numbers, one an episode"
        )
    rewards = rewards.reshape(-1)
    finite = torch.isfinite(rewards)
    if not allow_nonfinite and not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise UserError(f"model.reward: {name} returned {float(rewards[first])} for episode {first}; expected a number")
    return rewards
