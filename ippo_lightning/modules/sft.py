"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, world_size
from ippo_lightning.errors import require_range
from ippo_lightning.maths import reduce_terms
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.modules.text import Grader, TextModule
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, SamplingSettings
from ippo_lightning.records import Batch
from ippo_lightning.records.out_of_memory import MEMORY_ERRORS, is_out_of_memory
from ippo_lightning.records.pass_size import MaxTokens, PassSize, require_max_tokens


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
    """

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
    ) -> None:
        super().__init__(
            policy=policy, grader=grader, evaluation=evaluation, optimizer=optimizer, evaluation_seed=evaluation_seed
        )
        require_range("model.micro_batch_size", micro_batch_size, at_least=1, integer=True)
        require_max_tokens("model.max_tokens", max_tokens)
        self.micro_batch_size = micro_batch_size
        self.pass_size = PassSize(max_tokens, field="model.max_tokens")
        self.max_grad_norm = max_grad_norm

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, float]:
        """Take one optimizer step on a batch of demonstrations; return numbers for the log."""
        start = time.perf_counter()
        factor = self.schedule_learning_rate()
        encoded = self.encode_demonstrations(batch)
        local_tokens = encoded.response_mask.sum().double()
        # Over all ranks: with a mean per rank, the tokens of a rank with short responses would weigh more.
        tokens = float(all_reduce_sum(local_tokens))
        with self.keeping_failed_step():
            # Gradients are averaged over ranks: divided by tokens / ranks, their average is the mean over all tokens.
            total = self._accumulate(encoded, tokens / world_size())
            norm = self.clip_and_step(self.max_grad_norm)
        return self.finish_iteration(
            {
                "sft/loss": float(all_reduce_sum(total)) / world_size(),
                "sft/gradient_norm": norm,
                "sft/learning_rate_factor": factor,
                "time/iteration_seconds": time.perf_counter() - start,
            },
            episodes=int(all_reduce_sum(local_tokens.new_tensor(len(encoded.response_ids)))),
            optimizer_steps=1,
            tokens=int(tokens),
        )

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
            part = EncodedResponses(*(tensor[one.rows] for tensor in encoded))
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
