"""The parameters of a policy: what trains, and their state."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ippo_lightning.distributed.dtensor import full_tensor
from ippo_lightning.policies.adapter_critic import AdapterCritic
from ippo_lightning.policies.saving import copy_parameters


class TrainableParts(nn.Module):
    """A module with a language model and perhaps a critic, of which some parameters train."""

    model: nn.Module
    value_head: nn.Module | None
    critic: nn.Module | AdapterCritic | None

    def named_trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and parameter of everything that trains, critic included."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return every parameter that trains, critic included."""
        return [parameter for _, parameter in self.named_trainable_parameters()]

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters of the language model, without value head or critic."""
        of_critic = {id(parameter) for parameter in self.value_parameters()}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in of_critic]

    def value_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters of the value head or the critic."""
        critic = self.value_head if self.critic is None else self.critic
        return [] if critic is None else [parameter for parameter in critic.parameters() if parameter.requires_grad]

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return full copies of the trainable parameters by name.

        Together with the constructor's arguments they determine the policy. If it is sharded, every rank must call
        this.
        """
        # Clones, because an optimizer step changes the parameters in place.
        return {name: full_tensor(parameter.detach()).clone() for name, parameter in self.named_trainable_parameters()}

    def load_trainable_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put trainable parameters back.

        Args:
            state: what `trainable_state_dict` returned for a policy with the same constructor arguments.

        Raises:
            UserError: names or shapes differ.
        """
        copy_parameters(dict(self.named_trainable_parameters()), state)
