"""The settings of an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ippo_lightning.engine.nonfinite import OnNonfinite
from ippo_lightning.errors import require_choice, require_range
from ippo_lightning.maths import LossReduction
from ippo_lightning.records.pass_size import MaxTokens, require_max_tokens


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How an update goes through its episodes: epochs, sizes, clipping of gradients, and what filtering does.

    Args:
        num_epochs: passes over the kept episodes of one iteration.
        minibatch_size: episodes per optimizer step, on each rank.
        micro_batch_size: at most so many episodes per forward and backward; fewer save memory and change nothing
            else.
        max_tokens: tokens of a micro-batch, prompts and padding included; `auto` is 16384 on a CPU, and what the memory
            of a GPU allows. Halved if the device's memory is too small.
        max_grad_norm: gradients are scaled down to this norm; null for no clipping.
        loss_reduction: `episode_mean` gives each episode the same weight, `token_mean` each token of a minibatch, and
            `rollout_token_mean` each token of the iteration. `fixed_length` divides the sum of an episode by
            `sampling.max_new_tokens`, whatever its length.
        denominator: what divides the policy loss after filtering: `kept` episodes, so that the step keeps its size,
            or `all`, so that it shrinks with the fraction that is left.
        steps_after_filtering: `fewer` optimizer steps if episodes were dropped, or the `same` number with smaller
            minibatches, to compare methods at equal optimizer steps.
        train_value_on_dropped: whether the critic (and the entropy bonus) still learns from episodes of weight zero.
        mask_truncated: leave episodes that the length limit cut out of the loss; they still count in the baseline.
        critic_warmup_iterations: number of first iterations in which the critic learns alone, and the policy keeps its
            weights. Filters do nothing then, and the KL coefficient does not move.
        on_nonfinite: what NaN or infinity in an episode's reward, log-prob, value, loss or gradient does: `stop` the
            run, or `skip` the episode; either way it is named.

    Raises:
        UserError: a number out of its range, or an unknown word.
    """

    num_epochs: int = 4
    minibatch_size: int = 64
    micro_batch_size: int = 64
    max_tokens: MaxTokens = "auto"
    max_grad_norm: float | None = 1.0
    loss_reduction: LossReduction = "episode_mean"
    denominator: Literal["kept", "all"] = "kept"
    steps_after_filtering: Literal["fewer", "same"] = "fewer"
    train_value_on_dropped: bool = False
    mask_truncated: bool = False
    critic_warmup_iterations: int = 0
    on_nonfinite: OnNonfinite = "stop"

    def __post_init__(self) -> None:
        for name in ("num_epochs", "minibatch_size", "micro_batch_size"):
            require_range(f"update.{name}", getattr(self, name), at_least=1, integer=True)
        require_range("update.critic_warmup_iterations", self.critic_warmup_iterations, at_least=0, integer=True)
        require_max_tokens("update.max_tokens", self.max_tokens)
        if self.max_grad_norm is not None:
            require_range("update.max_grad_norm", self.max_grad_norm, above=0)
        # a YAML is checked by its parser; in Python a misspelt word would quietly mean the other choice
        require_choice("update.loss_reduction", self.loss_reduction, get_args(LossReduction))
        require_choice("update.denominator", self.denominator, ("kept", "all"))
        require_choice("update.steps_after_filtering", self.steps_after_filtering, ("fewer", "same"))
        require_choice("update.on_nonfinite", self.on_nonfinite, ("stop", "skip"))
