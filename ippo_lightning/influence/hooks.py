"""Score a whole batch in one backward: hooks contract each module's input and output gradient on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ippo_lightning.influence.coverage import HookedModule
from ippo_lightning.influence.failures import CoverageError
from ippo_lightning.influence.surroundings import gradients


class HookSession:
    """Hooks on a model's modules, for as long as the session is open.

    Between a forward and its backward nothing is kept but what autograd itself keeps: a module's input is a saved
    tensor of the graph, so it is freed with the graph, and checkpointing drops and recomputes it like any other.

    Args:
        hooked: modules and their contractions.
        dtype: float32 or float64, of the sums.
    """

    def __init__(self, hooked: Sequence[HookedModule], *, dtype: torch.dtype) -> None:
        self.saw_half_precision = False
        self._hooked = hooked
        self._dtype = dtype
        self._handles: list[RemovableHandle] = []
        self._scores: Tensor | None = None
        # Every hooked output hangs on this leaf, so one torch.autograd.grad towards it visits them all, and touches no
        # `.grad` of any parameter. It also lets gradients begin at an output whose inputs are all frozen.
        self._anchor = torch.zeros((), requires_grad=True)

    def __enter__(self) -> HookSession:
        for entry in self._hooked:
            # Before hooks of others, which may replace the output by something that is not linear in the parameters.
            handle = entry.module.register_forward_hook(self._hook_for(entry), prepend=True, with_kwargs=True)
            self._handles.append(handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def score(self, losses: Tensor, *, keep_graph: bool) -> Tensor:
        """Walk back from the losses and sum every module's contribution.

        Args:
            losses: one loss an episode, shape [episodes], from a forward made while the session was open.
            keep_graph: whether the graph will be walked again.

        Returns:
            Scores, shape [episodes], in the session's dtype.

        Raises:
            CoverageError: a module ran on another number of rows than there are episodes.
        """
        scores = torch.zeros(losses.shape, dtype=self._dtype, device=losses.device)
        if not losses.requires_grad:
            return scores
        self._scores = scores
        try:
            gradients(losses, [self._anchor], torch.ones_like(losses), keep_graph=keep_graph)
        finally:
            self._scores = None
        return scores

    def receive(self, entry: HookedModule, inputs: Tensor, gradient: Tensor) -> None:
        """Add what one call of one module contributes; a backward that is not scoring passes through."""
        if self._scores is None:
            return
        episodes = self._scores.shape[0]
        if gradient.shape[0] != episodes:
            raise CoverageError(
                f"model: '{entry.name}' ran on a batch of {gradient.shape[0]} while there are {episodes} episodes, so "
                "its gradient cannot be split among them; give every episode its own row (for position embeddings, "
                "pass position_ids for each episode), or use method='per_episode'"
            )
        halves = (torch.float16, torch.bfloat16)
        self.saw_half_precision |= gradient.dtype in halves or inputs.dtype in halves
        for term, block in entry.terms:
            contribution = term(entry.module, inputs, gradient, block)
            self._scores += contribution.to(device=self._scores.device)

    def _hook_for(self, entry: HookedModule) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
            # No gradient will come back from a reference pass or from a reentrant checkpoint's first pass.
            if not torch.is_grad_enabled():
                return None
            inputs = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            return _Watch.apply(output, inputs.detach(), self._anchor, self, entry)

        return hook


class _Watch(torch.autograd.Function):
    """The identity, which on the way back reports the module's input and output gradient."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, session: HookSession, entry: HookedModule
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.session, ctx.entry = session, entry
        # A detached alias costs no memory and, unlike a view, may be changed in place by what follows (ReLU, say).
        return output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inputs,) = ctx.saved_tensors
        ctx.session.receive(ctx.entry, inputs, gradient)
        return gradient, None, None, None, None
