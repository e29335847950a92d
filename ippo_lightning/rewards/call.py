"""Calls of a user's reward, and checks of what it returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.records import Example
from ippo_lightning.rewards.evaluation_mode import evaluation_mode
from ippo_lightning.rewards.protocol import Reward
from ippo_lightning.tasks import callable_name


def call_reward(
    reward: Reward,
    *,
    prompts: Sequence[str],
    responses: Sequence[str],
    examples: Sequence[Example],
    allow_nonfinite: bool = False,
) -> Tensor:
    """Return what a reward returns, checked.

    A reward that is an `nn.Module` (or a method or a `functools.partial` of one) is called in eval mode and without
    gradients.

    Args:
        reward: called as `reward(prompts, responses, examples)`.
        prompts: one per episode.
        responses: one per episode.
        examples: one per episode.
        allow_nonfinite: accept NaN and infinity; the caller then deals with them.

    Returns:
        Shape [rows], float32, on the CPU.

    Raises:
        UserError: the reward raised, returned another number of values, or one that is not a finite number.
    """
    name = callable_name(reward)
    try:
        with evaluation_mode(reward):
            returned = reward(prompts, responses, examples)
    except UserError:
        raise  # already one line for the user, of a grader for example
    except Exception as error:  # the user's code may raise anything; its cause stays attached
        # On one line and short: the message of a library may be of any length.
        message = " ".join(str(error).split())[:200]
        raise UserError(f"model.reward: {name} raised {type(error).__name__}: {message}") from error
    try:
        # Detached and on the CPU: a reward model may return a graph, or a tensor of another GPU.
        rewards = torch.as_tensor(returned, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"model.reward: {name} returned {type(returned).__name__}; expected {len(prompts)} numbers"
        ) from error
    # a reward model's head gives [rows, 1]; [1, rows] is more likely a mistake
    if rewards.shape not in ((len(prompts),), (len(prompts), 1)):
        raise UserError(
            f"model.reward: {name} returned shape {tuple(rewards.shape)}; "
            f"expected {len(prompts)} numbers, one per episode"
        )
    rewards = rewards.reshape(-1)
    finite = torch.isfinite(rewards)
    if not allow_nonfinite and not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise UserError(
            f"model.reward: {name} returned {float(rewards[first])} for episode {first}; expected a finite number"
        )
    return rewards
