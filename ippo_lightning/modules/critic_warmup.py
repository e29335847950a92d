"""The first iterations of a run, in which the critic learns alone."""

from __future__ import annotations

from torch import Tensor

from ippo_lightning.algorithms import ValueLoss
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules.optimization import is_of_critic
from ippo_lightning.modules.policy_iterations import PolicyIterations


class CriticWarmup(PolicyIterations):
    """Iterations of a policy and a critic, of which the critic may learn alone at first; first among the bases.

    A critic at random values gives advantages that are noise, and the policy would follow it. Source: VC-PPO, Yuan et
    al. 2025, arXiv 2503.01491, whose value pretraining this is, on the rollouts of the run itself.
    """

    value_loss: ValueLoss

    @property
    def is_critic_warmup(self) -> bool:
        """Whether the critic learns alone in this iteration."""
        return self.iteration < self.update_settings.critic_warmup_iterations

    def loss_of_iteration(self, loss: Tensor, value_loss: Tensor) -> Tensor:
        """Return the loss itself or, in the critic's warm-up, that of the critic alone, shape [].

        Args:
            loss: of policy, critic and entropy.
            value_loss: of the critic, a part of it before its coefficient.
        """
        if not self.is_critic_warmup:
            return loss
        of_critic = self.value_loss.coef * value_loss
        # Multiplied by 0 and not left out: DDP waits for a gradient of each parameter.
        return of_critic + 0.0 * (loss - of_critic)

    def take_step(self) -> float:
        """Clip, step and clear the gradients; return the gradient norm before clipping."""
        if self.is_critic_warmup:
            # A head's loss also reaches the features that it reads. Without a gradient, the optimizer leaves a weight
            # and its moments alone; at a gradient of 0, Adam would still count a step and decay the weight.
            for name, parameter in self.trained_parameters().items():
                if not is_of_critic(name):
                    parameter.grad = None
        return super().take_step()


def require_critic(update: UpdateSettings, value_loss: ValueLoss, *, has_values: bool) -> None:
    """Refuse a warm-up in which nothing would learn.

    Args:
        update: of the module.
        value_loss: the critic's loss.
        has_values: whether there is a critic.

    Raises:
        UserError: there is no critic, or its loss has the weight 0.
    """
    count = update.critic_warmup_iterations
    if count and not has_values:
        raise UserError(
            f"update.critic_warmup_iterations: {count}, and the policy has no critic; set policy.value or 0"
        )
    if count and value_loss.coef == 0:
        raise UserError(f"value_loss.coef: 0, and the critic learns alone for {count} iterations; expected above 0")
