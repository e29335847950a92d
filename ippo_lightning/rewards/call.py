"""Calls of a user's reward, and checks of what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.records import Example, TextEpisodes
from ippo_lightning.rewards.awaiting import awaited
from ippo_lightning.rewards.evaluation_mode import evaluation_mode
from ippo_lightning.rewards.process_state import process_state_kept
from ippo_lightning.rewards.protocol import Reward
from ippo_lightning.rewards.watch import watched
from ippo_lightning.tasks import Grader, callable_name
from ippo_lightning.tasks.names import takes_keyword
from ippo_lightning.tasks.raised import raised

MAX_PARTS = 32
"""Named parts of a reward; each becomes a metric."""
MAX_NAME = 40
"""Characters of a part's name."""


@dataclass(frozen=True)
class CalledReward:
    """What a reward returned, checked."""

    total: Tensor
    """[rows] float32, on the CPU."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """[rows] each, which add up to the total; empty if the reward returned plain numbers."""


def call_reward(
    reward: Reward,
    *,
    prompts: Sequence[str],
    responses: Sequence[str],
    examples: Sequence[Example],
    allow_nonfinite: bool = False,
    timeout: float | None = None,
) -> Tensor:
    """Return what a reward returns, checked; of named parts, their sum.

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
    texts = (prompts, responses, examples)
    return call_in_parts(reward, texts, allow_nonfinite=allow_nonfinite, timeout=timeout).total


def call_in_parts(
    reward: Reward,
    texts: tuple[Sequence[str], Sequence[str], Sequence[Example]],
    *,
    allow_nonfinite: bool = False,
    timeout: float | None = None,
    episodes: TextEpisodes | None = None,
    grader: Grader | None = None,
) -> CalledReward:
    """Return what a reward returns, checked, with its named parts; see `call_reward`.

    Args:
        reward: see `Reward`.
        texts: prompts, responses and examples, one of each per episode.
        allow_nonfinite: see `call_reward`.
        timeout: see `call_reward`.
        episodes: of the rollout, for a reward with a parameter of this name.
        grader: of the run, for a reward with a parameter of this name.

    Raises:
        UserError: see `call_reward`; or a part's name is no short word.
    """
    name, rows = callable_name(reward), len(texts[0])
    more = {key: value for key, value in (("episodes", episodes), ("grader", grader)) if takes_keyword(reward, key)}
    limit = watched(f"model.reward: {name}", limit=timeout, field="model.reward_timeout")
    try:
        with limit, process_state_kept(), evaluation_mode(reward):
            returned: Any = awaited(reward(*texts, **more))
    except (UserError, KeyboardInterrupt):
        raise  # already one line for the user, of a grader for example; or the user's Ctrl-C
    # Not only Exception: SystemExit(0) of a reward would end a run that trained nothing with success.
    except BaseException as error:  # the user's code may raise anything; its cause stays attached
        raise UserError(f"model.reward: {name} {raised(error, next(iter(texts[2]), None))}") from error
    if not isinstance(returned, Mapping):
        return CalledReward(_checked(returned, name, rows, allow_nonfinite=allow_nonfinite))
    _check_names(returned, name)
    parts = {
        part: _checked(values, name, rows, allow_nonfinite=allow_nonfinite, of=f" as part {part}")
        for part, values in returned.items()
    }
    return CalledReward(torch.stack(list(parts.values())).sum(dim=0), parts)


def _check_names(parts: Mapping[Any, Any], name: str) -> None:
    if not 1 <= len(parts) <= MAX_PARTS:
        raise UserError(f"model.reward: {name} returned {len(parts)} parts; expected 1 to {MAX_PARTS}")
    for part in parts:
        if not is_part_name(part):
            raise UserError(
                f"model.reward: {name} returned a part {part!r:.60}; expected a name of letters, digits, _ - ."
            )


def is_part_name(name: object) -> bool:
    """Return whether a part of a reward may have this name, which becomes the end of a metric's."""
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        return False
    return name.isascii() and all(letter.isalnum() or letter in "_-." for letter in name)


def _checked(returned: object, name: str, rows: int, *, allow_nonfinite: bool, of: str = "") -> Tensor:
    """Return numbers as a tensor of one per episode."""
    try:
        rewards = _as_floats(returned)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"model.reward: {name} returned {_shown(returned)}{of}; expected {rows} numbers, one per episode"
        ) from error
    # a reward model's head gives [rows, 1]; [1, rows] is more likely a mistake
    if rewards.shape not in ((rows,), (rows, 1)):
        raise UserError(
            f"model.reward: {name} returned shape {tuple(rewards.shape)}{of}; expected {rows} numbers, one per episode"
        )
    rewards = rewards.reshape(-1)
    finite = torch.isfinite(rewards)
    if not allow_nonfinite and not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise UserError(
            f"model.reward: {name} returned {float(rewards[first])}{of} for episode {first}; expected a finite number"
        )
    return rewards


def _shown(returned: object) -> str:
    """Return what a reward returned in place of numbers: the first entry of a list that is none, else the type."""
    if returned is None:
        return "NoneType (as a function without return does)"
    for place, item in enumerate(returned) if isinstance(returned, (list, tuple)) else ():
        if not isinstance(item, (Real, Tensor)) and not hasattr(item, "item"):
            given = f"{item!r:.40}" if isinstance(item, (str, type(None))) else type(item).__name__
            return f"{type(returned).__name__} with {given} for episode {place}"
    return type(returned).__name__


def _as_floats(returned: object) -> Tensor:
    """Return numbers in any container as a dense float32 tensor on the CPU, without a graph."""
    # torch would drop the imaginary parts with no more than a warning, and a nested tensor has no shape.
    if "complex" in str(getattr(returned, "dtype", "")) or getattr(returned, "is_nested", False):
        raise TypeError("no numbers in rows")
    if isinstance(returned, Tensor) and returned.layout != torch.strided:
        returned = returned.to_dense()
    # Detached and on the CPU: a reward model may return a graph, or a tensor of another GPU.
    return torch.as_tensor(returned, dtype=torch.float32).detach().cpu()
