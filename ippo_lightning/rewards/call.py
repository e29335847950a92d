"""Calls of a user's reward, and checks of what it returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.records import Example
from ippo_lightning.rewards.evaluation_mode import evaluation_mode
from ippo_lightning.rewards.process_state import process_state_kept
from ippo_lightning.rewards.protocol import Reward
from ippo_lightning.rewards.watch import watched
from ippo_lightning.tasks import callable_name


def call_reward(
    reward: Reward,
    *,
    prompts: Sequence[str],
    responses: Sequence[str],
    examples: Sequence[Example],
    allow_nonfinite: bool = False,
    timeout: float | None = None,
) -> Tensor:
    """Return what a reward returns, checked.

    A reward that is an `nn.Module` (or a method or a `functools.partial` of one) is called in eval mode and without
    gradients. Settings of the process that a reward changes, such as torch's default dtype, are set back.

    Args:
        reward: called as `reward(prompts, responses, examples)`.
        prompts: one per episode.
        responses: one per episode.
        examples: one per episode.
        allow_nonfinite: accept NaN and infinity; the caller then deals with them.
        timeout: seconds after which the call is an error; None for no limit. After a minute one line names the reward.

    Returns:
        Shape [rows], float32, on the CPU.

    Raises:
        UserError: the reward raised, took too long, returned another number of values, or one that is not a finite
            number.
    """
    name = callable_name(reward)
    limit = watched(f"model.reward: {name}", limit=timeout, field="model.reward_timeout")
    try:
        with limit, process_state_kept(), evaluation_mode(reward):
            returned = reward(prompts, responses, examples)
    except (UserError, KeyboardInterrupt):
        raise  # already one line for the user, of a grader for example; or the user's Ctrl-C
    # Not only Exception: SystemExit(0) of a reward would end a run that trained nothing with success.
    except BaseException as error:  # the user's code may raise anything; its cause stays attached
        # On one line and short: the message of a library may be of any length.
        message = " ".join(str(error).split())[:200]
        raise UserError(f"model.reward: {name} raised {type(error).__name__}: {message}") from error
    try:
        rewards = _as_floats(returned)
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


def _as_floats(returned: object) -> Tensor:
    """Return numbers in any container as a dense float32 tensor on the CPU, without a graph."""
    # torch would drop the imaginary parts with no more than a warning, and a nested tensor has no shape.
    if "complex" in str(getattr(returned, "dtype", "")) or getattr(returned, "is_nested", False):
        raise TypeError("no numbers in rows")
    if isinstance(returned, Tensor) and returned.layout != torch.strided:
        returned = returned.to_dense()
    # Detached and on the CPU: a reward model may return a graph, or a tensor of another GPU.
    return torch.as_tensor(returned, dtype=torch.float32).detach().cpu()
