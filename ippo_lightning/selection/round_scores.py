"""Scores within an update: what each row did at each optimizer step, summed over the steps of the round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.influence import score_episodes
from ippo_lightning.records import Minibatch, UpdatePlan
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection.grouped_gradients import take_gradients
from ippo_lightning.selection.targets import Target


class RoundScores:
    """Stands in for a module in `run_update`, and scores each minibatch before its step.

    score_i = sum over the steps k that contain i of <grad loss_i, grad target>, both at the parameters before step k;
    loss_i is the part of row i in the policy loss of that minibatch, clipping and normalisation included.
    Source: Hu et al. 2025, arXiv 2505.19281 (IIF), TracIn over the optimizer steps of a round.

    A step costs a gradient of the target and a backward more, so this is for analyses. The update itself is the same.

    Args:
        module: with `minibatch_loss`, as `ControlPPOModule` has it. Sharded modules are refused by the scores.
        target: what scores are about; `ReturnOfBuffer(importance=True)` is the return of the rollout at
            later parameters, too.
        plan: of the update.

    Raises:
        UserError: a target that leaves a row's own part out; later, the loss of a minibatch does not depend on the
            weights of its rows.
    """

    def __init__(self, module: Any, *, target: Target, plan: UpdatePlan) -> None:
        if target.leaves_out_self:
            found = f"{type(target).__name__} leaves a row out of its own target, and RoundScores is about all rows"
            raise UserError(f"target: {found}; set leave_out_self to false, or use another target")
        self.module = module
        # A minibatch does not know the positions of its rows, and an update reads no groups.
        numbers = torch.arange(len(plan.weights), device=plan.weights.device)
        self.plan = UpdatePlan(episodes=plan.episodes.evolve(group=numbers))
        """What `run_update` gets: the plan, whose groups number the rows."""
        self.plan.scale(plan.weights, reason="RoundScores")
        self.plan.sealed = True
        self.scores = torch.zeros(len(plan.weights), dtype=torch.float64)
        """[rows], the sums so far."""
        self._target, self._original = target, plan
        self._size = PassSize("auto", field="target.max_tokens")
        self._has_checked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def loss_through_wrapper(self, minibatch: Minibatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Add the scores of a minibatch, and return its loss.

        Args:
            minibatch: of `plan`, whose groups number the rows.
        """
        chosen = self._target.loss(self.module, self._original)
        direction = take_gradients(self.module, chosen, num_groups=1, size=self._size).mean
        found = score_episodes(
            self.module, _row_losses, [minibatch], [direction], checksum_batches=int(not self._has_checked)
        ).scores[0]
        self._has_checked = True
        self.scores.index_add_(0, minibatch.episodes.group.cpu(), found.double().cpu())
        loss: tuple[Tensor, Mapping[str, Tensor]] = self.module.loss_through_wrapper(minibatch)
        return loss


def _row_losses(module: Any, minibatch: Minibatch) -> Tensor:
    """Return the part of each row in the policy loss of a minibatch, shape [rows], with its graph."""
    weights = minibatch.weights.detach().requires_grad_()
    weighted = Minibatch(
        episodes=minibatch.episodes,
        weights=weights,
        value_weights=minibatch.value_weights,
        policy_denominator=minibatch.policy_denominator,
        value_denominator=minibatch.value_denominator,
    )
    loss, _ = module.minibatch_loss(weighted)
    # The loss is linear in the weights, so this is each row's part; the critic's loss does not depend on them.
    (parts,) = torch.autograd.grad(loss, [weights], create_graph=True, allow_unused=True)
    if parts is None:
        raise UserError(f"{type(module).__name__}.minibatch_loss: it does not depend on the weights of the rows")
    return weights.detach() * parts
