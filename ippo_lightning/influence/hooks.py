"""Score a batch in one backward: hooks contract each module's input and output gradient at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ippo_lightning.distributed.dtensor import full_tensor
from ippo_lightning.influence.contractions import Rows
from ippo_lightning.influence.coverage import HookedModule, HookedParameter
from ippo_lightning.influence.model_state import HALVES, gradients
from ippo_lightning.influence.refusals import CoverageError
from ippo_lightning.records.row_bands import first_row_of_band


class HookSession:
    """Hooks on a model's modules while the session is open.

    Between a forward and its backward the session stores nothing itself: a module's input is a saved tensor of the
    graph, so it is freed with the graph, and checkpointing drops and recomputes it like any other.

    Args:
        hooked: modules and their contractions.
        num_directions: number of directions that the blocks belong to.
        with_norms: whether to compute the norms of the episodes' gradients, too.
        dtype: dtype of the sums, float32 or float64.
    """

    def __init__(
        self,
        hooked: Sequence[HookedModule],
        *,
        num_directions: int = 1,
        with_norms: bool = False,
        dtype: torch.dtype,
    ) -> None:
        self.saw_half_precision = False
        self.careful = False
        """Whether the sums leave out a NaN where no gradient flows; this is slower."""
        self._hooked = hooked
        self._num_parts = len({part.name for entry in hooked for part in entry.parts})
        self._num_directions = num_directions
        self._dtype = dtype
        self._handles: list[RemovableHandle] = []
        self.with_norms = with_norms
        self._tally: Tally | None = None
        self._norms: GradientNorms | None = None
        self._num_uses: Counter[str] = Counter()
        # Every hooked output depends on this leaf, so one torch.autograd.grad for it visits all hooks and changes no
        # `.grad`. The leaf also makes an output require gradients when all of the module's inputs are frozen.
        self._anchor = torch.zeros((), requires_grad=True)

    def __enter__(self) -> HookSession:
        for entry in self._hooked:
            # Before other hooks, which may replace the output by something that is not linear in the parameters.
            handle = entry.module.register_forward_hook(self._hook_for(entry), prepend=True, with_kwargs=True)
            self._handles.append(handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def score(self, losses: Tensor, *, segments: Tensor | None = None, keep_graph: bool) -> dict[str, Tensor]:
        """Make the backward from the losses and sum the contributions of each parameter.

        Args:
            losses: one loss per episode, shape [rows], from a forward made while the session was open.
            segments: the episode of each token, shape [rows, tokens], int64, below 0 for padding; None if each row is
                one episode.
            keep_graph: whether a second backward will use the graph.

        Returns:
            Parameter name to its part of the scores, shape [directions, rows], in the session's dtype.

        Raises:
            CoverageError: a module's rows do not correspond to episodes.
        """
        # Before the early return: losses without a graph then have norms of zero, not those of the batch before.
        self._norms = GradientNorms(self.zeros(losses)[0], num_uses=self._num_uses) if self.with_norms else None
        if not losses.requires_grad:
            return {}
        rows = Rows(keep=1 if segments is None else 2, careful=self.careful)
        self._tally = tally = Tally(self.zeros(losses), num_parts=self._num_parts, segments=segments, rows=rows)
        try:
            # One backward from the sum is enough: the loss of an episode depends only on the episode's own rows.
            gradients(losses, [self._anchor], torch.ones_like(losses), keep_graph=keep_graph)
        finally:
            self._tally = None
            self._num_uses = Counter()
        return tally.parts

    def zeros(self, losses: Tensor) -> Tensor:
        """Return scores of zero for these episodes, shape [directions, rows]."""
        return torch.zeros((self._num_directions, len(losses)), dtype=self._dtype, device=losses.device)

    def norms(self) -> Tensor:
        """Return the norms of the gradients of the last scores, shape [rows]; requires `with_norms`."""
        assert self._norms is not None, "with_norms is False, or nothing was scored"
        return self._norms.norms()

    def receive(self, entry: HookedModule, inputs: Tensor, gradient: Tensor, first_row: int | None) -> None:
        """Add the contribution of one call of one module, for all rows or those of a band."""
        if self._tally is None:  # a backward for another purpose, such as the checksum's, runs through the same hooks
            return
        self.saw_half_precision |= gradient.dtype in HALVES or inputs.dtype in HALVES
        self._tally.add(entry, inputs, gradient, first_row=first_row)
        if self._norms is not None:
            self._norms.add(entry, inputs, gradient, first_row=first_row)

    def _hook_for(self, entry: HookedModule) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor | None:
            # A reference pass and the first pass of a reentrant checkpoint receive no gradient.
            if not torch.is_grad_enabled():
                return None
            self._num_uses.update(part.name for part in entry.parts)
            # A model may call its layers by keyword, so the input is the first tensor of either kind.
            inputs = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            # Detached: only the input's value is needed, so autograd must see no second path to earlier modules.
            watched: Tensor = _Watch.apply(output, inputs.detach(), self._anchor, self, entry, first_row_of_band())
            return watched

        return hook


class Tally:
    """The sums of one batch, by parameter.

    Args:
        zeros: initial value of the sums, shape [directions, rows].
        num_parts: number of parameters.
        segments: as in `HookSession.score`.
        rows: how products are summed.
    """

    def __init__(self, zeros: Tensor, *, num_parts: int, segments: Tensor | None, rows: Rows) -> None:
        self.parts: dict[str, Tensor] = {}
        self._zeros = zeros
        # Allocated at once, before the backward: small tensors allocated during the backward would stay between the
        # activations that it frees, and split that memory into pieces too small for reuse.
        self._free = list(zeros.new_zeros((num_parts, *zeros.shape)).unbind())
        self._segments = segments
        self._rows = rows
        self._gathered: dict[int, Tensor] = {}

    def add(self, entry: HookedModule, inputs: Tensor, gradient: Tensor, *, first_row: int | None = None) -> None:
        """Contract input and output gradient of one call of a module with the blocks of its parameters.

        Args:
            entry: the module.
            inputs: its input.
            gradient: the gradient at its output.
            first_row: the episode of its first row, if the call worked on a band of the episodes; None for all.

        Raises:
            CoverageError: its rows do not correspond to episodes.
        """
        self._check_rows(entry, gradient, first_row)
        for part in entry.parts:
            if part.name not in self.parts:
                self.parts[part.name] = self._free.pop()
            total = self.parts[part.name]
            for number, block in enumerate(part.blocks):
                if block is not None:
                    full = self._full(block, in_bands=first_row is not None)
                    terms = part.term(entry.module, inputs, gradient, full, rows=self._rows)
                    # The layers of a model may be on several devices; the sums are on that of the losses.
                    of_rows = total[number] if first_row is None else total[number, first_row : first_row + len(terms)]
                    of_rows += self._by_episode(terms.to(device=total.device))

    def _full(self, block: Tensor, *, in_bands: bool) -> Tensor:
        """Return a block in full; a sharded one is gathered for its module only, as FSDP2 does with weights."""
        if not in_bands:
            self._gathered.clear()
            return full_tensor(block)
        # Once for all bands: gathering is a collective, and the ranks may have different numbers of bands.
        if id(block) not in self._gathered:
            self._gathered[id(block)] = full_tensor(block)
        return self._gathered[id(block)]

    def _by_episode(self, terms: Tensor) -> Tensor:
        if self._segments is None:
            return terms
        counts = self._segments >= 0
        ids = self._segments[counts].to(device=terms.device)
        return self._zeros[0].index_add(0, ids, terms[counts.to(device=terms.device)])

    def _check_rows(self, entry: HookedModule, gradient: Tensor, first_row: int | None) -> None:
        episodes = self._zeros.shape[1]
        if first_row is not None:
            last_row = first_row + gradient.shape[0]
            fits = self._segments is None and last_row <= episodes
            expected, ran = f"{episodes} episodes", f"rows {first_row} to {last_row}"
        elif self._segments is None:
            fits, expected, ran = gradient.shape[0] == episodes, f"{episodes} episodes", str(gradient.shape[0])
        else:
            shape = tuple(self._segments.shape)
            fits = entry.knows_tokens and tuple(gradient.shape[:2]) == shape
            expected, ran = f"segments of shape {list(shape)}", f"shape {list(gradient.shape)}"
        if not fits:
            raise CoverageError(
                f"model: '{entry.name}' ran on a batch of {ran} while there are {expected}, so its gradient cannot be "
                "split by episode; give every episode its own row (for position embeddings, pass position_ids for "
                "each episode), or use method='per_episode'"
            )


class _Watch(torch.autograd.Function):
    """The identity; its backward reports the module's input and output gradient to the session."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        inputs: Tensor,
        anchor: Tensor,
        session: HookSession,
        entry: HookedModule,
        first_row: int | None,
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.session, ctx.entry, ctx.first_row = session, entry, first_row
        # A detached alias needs no memory and, unlike a view, may be changed in place by the next module, say a ReLU.
        return output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (inputs,) = ctx.saved_tensors
        ctx.session.receive(ctx.entry, inputs, gradient, ctx.first_row)
        return gradient, None, None, None, None, None


class GradientNorms:
    """Norms of the episodes' gradients over the parameters on which the direction is not zero.

    The gradient of one parameter is formed for all episodes of a batch at once. The gradient of a parameter with
    several uses (tied, or in a module called twice) is kept until the end, because its parts may cancel.

    Args:
        zeros: initial value of the sums, shape [rows].
        num_uses: parameter name to the number of its uses in the forward.
    """

    def __init__(self, zeros: Tensor, *, num_uses: Counter[str]) -> None:
        self._squares = zeros.clone()
        self._num_uses = num_uses
        self._kept: dict[str, Tensor] = {}

    def add(self, entry: HookedModule, inputs: Tensor, gradient: Tensor, *, first_row: int | None = None) -> None:
        """Add the gradients of one call of a module.

        Args:
            entry: the module.
            inputs: its input.
            gradient: the gradient at its output.
            first_row: see `Tally.add`.
        """
        for part in entry.parts:
            formed = episode_gradients(entry, part, inputs, gradient)
            if self._num_uses[part.name] == 1 and first_row is None:
                self._squares += _squares(formed).to(device=self._squares.device)
            else:
                kept = self._kept.setdefault(part.name, formed.new_zeros((len(self._squares), *formed.shape[1:])))
                kept[first_row or 0 : (first_row or 0) + len(formed)] += formed

    def norms(self) -> Tensor:
        """Return the norms, shape [rows]."""
        total = sum((_squares(value).to(device=self._squares.device) for value in self._kept.values()), self._squares)
        return total.sqrt()


def _squares(gradients: Tensor) -> Tensor:
    return gradients.flatten(start_dim=1).square().sum(dim=1)


def episode_gradients(entry: HookedModule, part: HookedParameter, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradients of one parameter, shape [rows, *parameter].

    Args:
        entry: the module.
        part: the parameter.
        inputs: the module's input.
        gradient: the gradient at the module's output.
    """
    # A contraction is linear in its block, so its derivative with respect to the block is the gradient itself. This
    # reuses the contractions, whatever the kind of module.
    block = next(block for block in part.blocks if block is not None)
    zeros = torch.zeros(block.shape, dtype=block.dtype, device=block.device)

    def contracted(along: Tensor, row_inputs: Tensor, row_gradient: Tensor) -> Tensor:
        rows = Rows(careful=False)
        return part.term(entry.module, row_inputs.unsqueeze(0), row_gradient.unsqueeze(0), along, rows=rows).squeeze(0)

    form = torch.func.vmap(torch.func.grad(contracted), in_dims=(None, 0, 0))
    formed: Tensor = form(zeros, inputs, gradient)
    return formed
