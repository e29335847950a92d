"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, world_size
from ippo_lightning.errors import UserError
from ippo_lightning.maths import reduce_terms
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.modules.policy_module import Grader, PolicyModule
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, SamplingSettings


class SFTModule(PolicyModule):
    """Next-token likelihood of the demonstrations' responses, EOS included; one `training_step` is one optimizer step.

    Args:
        policy: see `PolicyModule`.
        grader: see `PolicyModule`.
        evaluation: see `PolicyModule`.
        optimizer: see `PolicyModule`.
        evaluation_seed: see `PolicyModule`.
        micro_batch_size: demonstrations in one forward and backward.
        max_grad_norm: gradients are scaled down to this norm; null for no clipping.
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
        if micro_batch_size < 1:
            raise UserError(f"model.micro_batch_size: {micro_batch_size} is out of range; expected an integer >= 1")
        self.micro_batch_size = micro_batch_size
        self.max_grad_norm = max_grad_norm

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, float]:
        """Take one optimizer step on a batch of demonstrations; return numbers for the log."""
        start = time.perf_counter()
        factor = self.schedule_learning_rate()
        encoded = self.encode_demonstrations(batch)
        local_tokens = encoded.response_mask.sum().double()
        tokens = float(all_reduce_sum(local_tokens))
        parts = torch.arange(len(encoded.response_ids)).split(self.micro_batch_size)
        total = torch.zeros((), dtype=torch.float64, device=encoded.response_ids.device)
        for number, (rows, is_real) in enumerate(self.in_step(parts)):
            part = EncodedResponses(*(tensor[rows] for tensor in encoded))
            with self.no_sync(number < len(parts) - 1):
                loss = self.call_through_wrapper(self.loss_method, part, tokens / world_size()) * is_real
                self.backward_loss(loss)
            total = total + loss.detach().double()
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

    def demonstration_loss(self, encoded: EncodedResponses, denominator: float) -> Tensor:
        """Return the summed negative log-likelihood of the response tokens, divided by `denominator`, shape []."""
        output = self.policy(*encoded)
        return reduce_terms(
            terms=-output.log_probs,
            mask=encoded.response_mask,
            weights=torch.ones(len(encoded.response_ids), device=output.log_probs.device),
            reduction="token_mean",
            denominator=denominator,
        )
