"""Targets other than the SFT loss, with whose gradients the episodes' gradients may be compared.

Each is a loss, so a positive score has the same meaning for all: a gradient step on the episode lowers the target.
Source: Hu et al. 2025, arXiv 2505.19281 (IIF), section 3, with the opposite sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ippo_lightning.errors import UserError


def return_target(*, log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return minus f_return, the policy-gradient objective of a buffer; the buffer is its own validation set.

    f_return = mean over the buffer's actions of log pi(a|s) * A

    Args:
        log_probs: log-probabilities of the actions taken, shape [rows, steps], nats, with their graph.
        advantages: shape [rows, steps].
        mask: shape [rows, steps], bool, True on actions.

    Returns:
        Shape [].

    Raises:
        UserError: no action.
    """
    # `where` and not a product with the mask: log-probabilities of padding may be NaN or minus infinity.
    count = _counted(mask, "mask")
    return -torch.where(mask, log_probs * advantages, 0.0).sum() / count


def sequence_target(*, log_probs: Tensor, last_advantages: Tensor, mask: Tensor) -> Tensor:
    """Return minus f_seq, the objective that treats each response as one action with its last token's advantage.

    f_seq = mean over responses of log pi(y|x) * A_last; log pi(y|x) is the sum over the response's tokens

    Args:
        log_probs: log-probabilities of the tokens, shape [rows, steps], nats, with their graph.
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
    """Return minus f_action, the log-probability of chosen actions; for diagnoses.

    f_action = log pi(a|s), averaged over the chosen actions

    Args:
        log_probs: log-probabilities of the actions taken, shape [rows, steps], nats, with their graph.
        chosen: shape [rows, steps], bool, True on the chosen actions.

    Returns:
        Shape [].

    Raises:
        UserError: no action is chosen.
    """
    return -torch.where(chosen, log_probs, 0.0).sum() / _counted(chosen, "chosen")


def _counted(mask: Tensor, name: str) -> int:
    count = int(mask.sum())
    if count == 0:
        raise UserError(f"{name}: all of {list(mask.shape)} are False; expected at least one action")
    return count
