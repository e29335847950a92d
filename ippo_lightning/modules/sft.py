"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, any_rank, world_size
from ippo_lightning.errors import require_choice, require_range
from ippo_lightning.maths import reduce_terms
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.modules.text import Grader, TextModule
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, SamplingSettings
from ippo_lightning.records import Batch
from ippo_lightning.records.out_of_memory import MEMORY_ERRORS, is_out_of_memory
from ippo_lightning.records.pass_size import MaxTokens, PassSize, require_max_tokens

_LOG = logging.getLogger(__name__)


class SFTModule(TextModule):
    """Next-token likelihood of the demonstrations' responses, EOS included; one `training_step` is one optimizer step.

    Args:
        policy: see `TextModule`.
        grader: see `TextModule`.
        evaluation: see `TextModule`.
        optimizer: see `TextModule`.
        evaluation_seed: see `TextModule`.
        micro_batch_size: at most so many demonstrations per forward and backward.
        max_tokens: tokens of a forward and backward, padding included; `auto` is 16384 on a CPU, and what the memory of
            a GPU allows. Halved if the device's memory is too small.
        max_grad_norm: gradients are scaled down to this norm; None for no clipping.
        on_nonfinite: what NaN or infinity in a demonstration's loss or gradient does: `stop` the run, or `skip` the
            demonstration; either way it is named.

    Raises:
        UserError: a number out of its range, or an unknown word.
    """

    makes_rollouts = False
    loss_method = "demonstration_loss"

    def __init__(
        self,
        *,
        policy: CausalLMPolicy,
        grader: Grader | None = None,
        evaluation: SamplingSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        evaluation_seed: int = 0,
        micro_batch_size: int = 64,
        max_tokens: MaxTokens = "auto",
        max_grad_norm: float | None = 1.0,
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__(
            policy=policy, grader=grader, evaluation=evaluation, optimizer=optimizer, evaluation_seed=evaluation_seed
        )
        require_range("model.micro_batch_size", micro_batch_size, at_least=1, integer=True)
        require_max_tokens("model.max_tokens", max_tokens)
        if max_grad_norm is not None:
            require_range("model.max_grad_norm", max_grad_norm, above=0)
        require_choice("model.on_nonfinite", on_nonfinite, ("stop", "skip"))
        self.micro_batch_size = micro_batch_size
        self.pass_size = PassSize(max_tokens, field="model.max_tokens")
        self.max_grad_norm = max_grad_norm
        self.on_nonfinite = on_nonfinite

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, float]:
        """Take one optimizer step on a batch of demonstrations; return numbers for the log."""
        start = time.perf_counter()
        factor = self.schedule_learning_rate()
        encoded = self.encode_demonstrations(batch)
        with self.keeping_failed_step():
            done = self._step(encoded, torch.arange(len(encoded.response_ids)), batch)
        skipped = encoded.response_mask.new_tensor(len(encoded.response_ids) - len(done.rows), dtype=torch.float64)
        return self.finish_iteration(
            {
                "sft/loss": float(all_reduce_sum(done.loss)) / world_size(),
                "sft/gradient_norm": done.norm,
                "sft/learning_rate_factor": factor,
                "sft/nonfinite_demonstrations": float(all_reduce_sum(skipped)),
                "time/iteration_seconds": time.perf_counter() - start,
            },
            episodes=int(all_reduce_sum(skipped.new_tensor(len(encoded.response_ids)))),
            optimizer_steps=1,
            tokens=int(done.tokens),
        )

    def _step(self, encoded: EncodedResponses, rows: Tensor, batch: Batch) -> _Done:
        """Take one optimizer step; if it is not finite, name the rows and stop, or repeat it without them.

        Args:
            encoded: demonstrations of this rank.
            rows: those that still take part.
            batch: names them in messages.
        """
        part = _rows_of(encoded, rows)
        # Over all ranks: with a mean per rank, the tokens of a rank with short responses would weigh more.
        tokens = max(float(all_reduce_sum(part.response_mask.sum().double())), 1.0)
        # Gradients are averaged over ranks: divided by tokens / ranks, their average is the mean over all tokens.
        denominator = tokens / world_size()
        loss = self._accumulate(part, denominator)
        try:
            return _Done(loss, self.clip_and_step(self.max_grad_norm), tokens, rows)
        except FloatingPointError as error:
            # The norm is that of the averaged gradient, so either all ranks come here or none.
            found = self._broken_rows(part, denominator) if len(rows) else {}
            device = part.response_ids.device
            if not any_rank(bool(found), device=device):
                raise
            named = _named(batch, {int(rows[row]): quantity for row, quantity in found.items()})
            left = [row for row in range(len(rows)) if row not in found]
            # Without any row of any rank there is no step to take.
            if self.on_nonfinite == "stop" or not any_rank(bool(left), device=device):
                raise FloatingPointError(named) from error
            _LOG.warning("%s; left out of this step", named)
        self.keep_skipped_step(named)
        return self._step(encoded, rows[left], batch)

    def _broken_rows(self, encoded: EncodedResponses, denominator: float) -> dict[int, str]:
        """Try each row alone; return those whose loss or gradient is not finite."""
        found: dict[int, str] = {}
        for one in self.passes(torch.ones_like(encoded.response_ids[:, 0]), max_rows=1, sort=False):
            # Not averaged over ranks: the NaN of one rank would reach all others.
            with self.no_sync(True):
                quantity = self.why_not_finite(_rows_of(encoded, one.rows), denominator)
            if quantity is not None and one.is_real:
                found[int(one.rows)] = quantity
        return found

    def _accumulate(self, encoded: EncodedResponses, denominator: float) -> Tensor:
        """Forward and backward over a batch; if memory runs out, again in passes half as large. Return the loss, []."""
        try:
            return self._accumulated(encoded, denominator)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except block, whose traceback keeps the tensors of the failed pass alive. Other ranks may have
        # averaged gradients already, and would wait for this one.
        self.pass_size.shrink_attempted(can_retry=world_size() == 1, what="demonstration")
        # The backward that failed may have left a part of its gradients, so the batch starts again.
        self.clear_gradients()
        return self._accumulate(encoded, denominator)

    def _accumulated(self, encoded: EncodedResponses, denominator: float) -> Tensor:
        rows, device = len(encoded.response_ids), encoded.response_ids.device
        # Each pass has the width of the batch.
        width = encoded.prompt_ids.shape[1] + encoded.response_ids.shape[1]
        costs = torch.full((rows,), width, device=device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        limits = {"max_rows": self.micro_batch_size, "max_tokens": self.pass_size.tokens}
        for one in self.passes(costs, **limits, sort=False):
            part = _rows_of(encoded, one.rows)
            measuring = self.pass_size.measuring(device, tokens=len(one.rows) * width, largest=width)
            with measuring, self.no_sync(not one.is_last):
                # A repeated pass serves the collectives of other ranks; times 0, it adds nothing to the gradient.
                loss = self.call_through_wrapper(self.loss_method, part, denominator) * one.is_real
                self.backward_loss(loss)
            total = total + loss.detach().double()
        return total

    def demonstration_loss(self, encoded: EncodedResponses, denominator: float) -> Tensor:
        """Return the summed negative log-likelihood of the response tokens in nats, divided by a number, shape [].

        Args:
            encoded: demonstrations of this micro-batch.
            denominator: tokens of the whole batch, of all ranks, per rank.
        """
        output = self.policy(*encoded)
        return reduce_terms(
            terms=-output.log_probs,
            mask=encoded.response_mask,
            weights=torch.ones(len(encoded.response_ids), device=output.log_probs.device),
            reduction="token_mean",
            denominator=denominator,
        )


class _Done(NamedTuple):
    """An optimizer step that was taken."""

    loss: Tensor
    """Shape [], of this rank."""
    norm: float
    tokens: float
    """Of all ranks."""
    rows: Tensor
    """Shape [rows], int64, those that took part."""


def _rows_of(encoded: EncodedResponses, rows: Tensor) -> EncodedResponses:
    """Return some rows; if there is none, one row without tokens that count, for the collectives of other ranks."""
    if len(rows):
        return EncodedResponses(*(tensor[rows.to(tensor.device)] for tensor in encoded))
    first = EncodedResponses(*(tensor[:1] for tensor in encoded))
    return first._replace(response_mask=torch.zeros_like(first.response_mask))


def _named(batch: Batch, found: Mapping[int, str]) -> str:
    """Return one line that names broken rows of a batch and their quantity."""
    if not found:
        return "NaN or infinity in a demonstration of another rank"
    named = [f"{what} of demonstration {row} (prompt {_short(batch, row)})" for row, what in sorted(found.items())]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"NaN or infinity in {', '.join(named[:_NAMED])}{more}"


def _short(batch: Batch, row: int) -> str:
    # repr: the text may contain characters that control a terminal
    return repr(str(batch["prompts"][row])[:_SHOWN])


_NAMED = 3  # rows in one message
_SHOWN = 60  # characters of a prompt
