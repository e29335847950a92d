"""Inner products of two gradients of the same row: a row's own part in a target that is made from the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.influence.coverage import Block, HookedModule, accumulation_dtype, active_blocks, hooked_modules
from ippo_lightning.influence.directions import Direction
from ippo_lightning.influence.hooks import HookSession, episode_gradients
from ippo_lightning.influence.model_state import frozen, gradients, trainable_parameters, undisturbed
from ippo_lightning.influence.options import Method
from ippo_lightning.influence.refusals import checked_losses, require_finite_scores
from ippo_lightning.influence.scores import EpisodeScores

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)
RowGradients = dict[str, Tensor]
"""Parameter name to the gradients of a batch's rows, shape [rows, *parameter]."""


def row_products(
    model: Model,
    losses: Callable[[Model, Batch], Tensor],
    others: Callable[[Model, Batch], Tensor] | None,
    batches: Iterable[Batch],
    metric: Direction,
    *,
    method: Method = "hooks",
) -> EpisodeScores:
    """Return the inner product of the gradients of two losses of each row, exactly.

    p_i = sum over parameters of metric * grad losses_i * grad others_i

    Costs one forward and one backward for each of the two losses, and the memory of the gradients of a batch's rows.

    Args:
        model: any module, not sharded, with the parameters at which the losses are differentiated.
        losses: called with the model and a batch; returns one loss per row, shape [rows], with its graph.
        others: the same for the other loss; None for the same one, and so for the squared norms of its gradients.
        batches: rows.
        metric: parameter name to factors >= 0 in the parameter's shape: 1, or those of Adam. A parameter without one
            does not count.
        method: `hooks` for one backward per batch, `per_episode` for one per row.

    Returns:
        Products, shape [1, rows] over all batches, and their parts by parameter.

    Raises:
        UserError: another method, or a sharded model.
        CoverageError: `hooks` does not cover a parameter.
        NonFiniteScoreError: a product is NaN or infinite.
    """
    if method not in ("hooks", "per_episode") or is_sharded(model):
        found = "a sharded model" if is_sharded(model) else f"'{method}'"
        raise UserError(f"method: got {found}, expected hooks or per_episode, and full parameters, for row_products")
    blocks = active_blocks(model, metric)
    dtype = accumulation_dtype(metric)
    results: list[EpisodeScores] = []
    with undisturbed(model):
        session = _Session(hooked_modules(model, [blocks]), dtype=dtype) if method == "hooks" else None
        with session or nullcontext():

            def of_rows(loss: Callable[[Model, Batch], Tensor], batch: Batch) -> tuple[RowGradients, int]:
                if session is not None:
                    with frozen(trainable_parameters(model).values()):
                        return session.collect(checked_losses(loss(model, batch)))
                return _one_by_one(checked_losses(loss(model, batch)), blocks)

            for batch in batches:
                results.append(_products(of_rows, losses, others, batch, blocks, dtype=dtype))
                require_finite_scores(results[-1].scores, first=sum(one.scores.shape[1] for one in results[:-1]))
    if not results:
        return EpisodeScores(torch.zeros(1, 0, dtype=dtype), {})
    names = results[0].by_parameter
    parts = {name: torch.cat([one.by_parameter[name] for one in results], dim=1) for name in names}
    return EpisodeScores(torch.cat([one.scores for one in results], dim=1), parts)


def _products(
    of_rows: Callable[[Callable[[Model, Batch], Tensor], Batch], tuple[RowGradients, int]],
    losses: Callable[[Model, Batch], Tensor],
    others: Callable[[Model, Batch], Tensor] | None,
    batch: Batch,
    blocks: list[Block],
    *,
    dtype: torch.dtype,
) -> EpisodeScores:
    """Return the products of one batch, shape [1, rows]."""
    first, count = of_rows(losses, batch)
    second = first if others is None else of_rows(others, batch)[0]
    device = blocks[0].parameter.device if blocks else torch.device("cpu")
    parts = {block.name: torch.zeros(1, count, dtype=dtype, device=device) for block in blocks}
    for block in blocks:
        if block.name in first and block.name in second:
            product = first[block.name].to(dtype) * block.direction * second[block.name].to(dtype)
            parts[block.name] = product.flatten(start_dim=1).sum(dim=1).to(device)[None]
    total = torch.zeros(1, count, dtype=dtype, device=device)
    for part in parts.values():
        total = total + part
    return EpisodeScores(total, parts)


class _Session(HookSession):
    """Hooks that form the gradients of the rows.

    Args:
        hooked: modules and their contractions.
        dtype: of the gradients.
    """

    def __init__(self, hooked: list[HookedModule], *, dtype: torch.dtype) -> None:
        super().__init__(hooked, dtype=dtype)
        self._formed: RowGradients = {}
        self._count = 0

    def collect(self, losses: Tensor) -> tuple[RowGradients, int]:
        """Return the gradients of the rows, and the number of rows.

        Args:
            losses: shape [rows], from a forward made while the session was open.
        """
        self._formed, self._count = {}, len(losses)
        self.score(losses, keep_graph=False)
        formed, self._formed = self._formed, {}
        return formed, len(losses)

    def receive(self, entry: HookedModule, inputs: Tensor, gradient: Tensor, first_row: int | None) -> None:
        """Form the gradients of one call of one module."""
        super().receive(entry, inputs, gradient, first_row)  # it checks that rows are rows of the batch
        for part in entry.parts:
            formed = episode_gradients(entry, part, inputs, gradient)
            if first_row is None and part.name not in self._formed:
                self._formed[part.name] = formed
                continue
            # A parameter with several uses, or one that is used band by band: its gradient is the sum.
            total = self._formed.setdefault(part.name, formed.new_zeros((self._count, *formed.shape[1:])))
            start = first_row or 0
            total[start : start + len(formed)] += formed


def _one_by_one(losses: Tensor, blocks: list[Block]) -> tuple[RowGradients, int]:
    """Return the gradients of the rows by plain autograd."""
    formed = {block.name: block.direction.new_zeros((len(losses), *block.direction.shape)) for block in blocks}
    for row in range(len(losses)) if losses.requires_grad else ():
        found = gradients(losses[row], [block.parameter for block in blocks], keep_graph=True)
        for block, gradient in zip(blocks, found, strict=True):
            if gradient is not None:
                formed[block.name][row] = gradient.to(formed[block.name])
    return formed, len(losses)
