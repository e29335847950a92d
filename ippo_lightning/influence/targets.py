"""Targets besides the SFT loss: what the episodes' gradients may be compared with.

Each is a loss, so that a positive score says the same for all: a gradient step on the episode lowers it.
Source: Hu et al. 2025, arXiv 2505.19281 (IIF), section 3, with the sign turned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ippo_lightning.errors import UserError


def return_target(*, log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return minus f_return: the policy-gradient objective of the buffer itself, which is then its own validation set.

    f_return = mean over the buffer's actions of log pi(a|s) * A

    Args:
        log_probs: of the actions taken, shape [rows, steps], nats, with their graph.
        advantages: shape [rows, steps].
        mask: shape [rows, steps], bool, True on actions.

    Returns:
        Shape [].

    Raises:
        UserError: no action.
    """
    count = _counted(mask, "mask")
    return -torch.where(mask, log_probs * advantages, 0.0).sum() / count


def sequence_target(*, log_probs: Tensor, last_advantages: Tensor, mask: Tensor) -> Tensor:
    """Return minus f_seq: responses to held-out prompts, each as one action with the advantage of its last token.

    f_seq = mean over responses of log pi(y|x) * A_last, log pi(y|x) the sum over the response's tokens

    Args:
        log_probs: shape [rows, steps], nats, with their graph.
        last_advantages: the advantage at each response's last token, shape [rows].
        mask: shape [rows, steps], bool, True on response tokens.

    Returns:
        Shape [].

    Raises:
        UserError: no response token.
    """
    _counted(mask, "mask")
    return -(torch.where(mask, log_probs, 0.0).sum(dim=1) * last_advantages).mean()


def action_target(*, log_probs: Tensor, chosen: Tensor) -> Tensor:
    """Return minus f_action: how likely the policy is to do what it did at chosen places, for a diagnosis.

    f_action = log pi(a|s), averaged where several are chosen

    Args:
        log_probs: shape [rows, steps], nats, with their graph.
        chosen: shape [rows, steps], bool, True on the actions in question.

    Returns:
        Shape [].

    Raises:
        UserError: nothing is chosen.
    """
    return -torch.where(chosen, log_probs, 0.0).sum() / _counted(chosen, "chosen")


def _counted(mask: Tensor, name: str) -> int:
    count = int(mask.sum())
    if count == 0:
        raise UserError(f"{name}: True nowhere in {list(mask.shape)}; expected at least one action")
    return count
