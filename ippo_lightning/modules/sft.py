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


class SFTModule(TextModule):
    """Next-token likelihood of the demonstrations' responses, EOS included; one `training_step` is one optimizer step.

    Args:
        policy: see `TextModule`.
        grader: see `TextModule`.
        evaluation: see `TextModule`.
        optimizer: see `TextModule`.
        evaluation_seed: see `TextModule`.
        micro_batch_size: demonstrations per forward and backward.
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
        max_grad_norm: float | None = 1.0,
    ) -> None:
        super().__init__(
            policy=policy, grader=grader, evaluation=evaluation, optimizer=optimizer, evaluation_seed=evaluation_seed
        )
        require_range("model.micro_batch_size", micro_batch_size, at_least=1, integer=True)
        self.micro_batch_size = micro_batch_size
        self.max_grad_norm = max_grad_norm

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, float]:
        """Take one optimizer step on a batch of demonstrations; return numbers for the log."""
        start = time.perf_counter()
        factor = self.schedule_learning_rate()
        encoded = self.encode_demonstrations(batch)
        local_tokens = encoded.response_mask.sum().double()
        # Over all ranks: with a mean per rank, the tokens of a rank with short responses would weigh more.
        tokens = float(all_reduce_sum(local_tokens))
        lengths = encoded.response_mask.sum(dim=1)
        with self.keeping_failed_step():
            total, norm = self._step(encoded, lengths, denominator=tokens / world_size())
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

    def _step(self, encoded: EncodedResponses, lengths: Tensor, *, denominator: float) -> tuple[Tensor, float]:
        """Take the optimizer step; return the loss of this rank, [] float64, and the norm of the gradient."""
        # Gradients are averaged over ranks: divided by tokens / ranks, their average is the mean over all tokens.
        total = torch.zeros((), dtype=torch.float64, device=encoded.response_ids.device)
        for one in self.passes(lengths, max_rows=self.micro_batch_size, sort=False):
            part = EncodedResponses(*(tensor[one.rows] for tensor in encoded))
            with self.no_sync(not one.is_last):
                # A repeated pass serves the collectives of other ranks; times 0, it adds nothing to the gradient.
                loss = self.call_through_wrapper(self.loss_method, part, denominator) * one.is_real
                self.backward_loss(loss)
            total = total + loss.detach().double()
        return total, self.clip_and_step(self.max_grad_norm)

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
