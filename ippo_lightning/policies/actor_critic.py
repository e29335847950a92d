"""Actors and critics for environments: small networks over observations, with categorical or Gaussian actions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.policies.output import PolicyOutput


@dataclass(frozen=True, kw_only=True)
class ObservationSpec:
    """What a network gets.

    Args:
        shape: of one observation; () for a number from a list.
        num_values: the observation is a number from 0 to `num_values` - 1, which becomes one-hot; None for a tensor.
        is_image: the tensor is [height, width, channels] of bytes, which are divided by 255.
    """

    shape: tuple[int, ...]
    num_values: int | None = None
    is_image: bool = False


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What a network returns: exactly one of the two is given.

    Args:
        num_actions: the action is a number from 0 to `num_actions` - 1, from a categorical distribution.
        size: the action is a vector of so many numbers, from a Gaussian with a diagonal covariance.
    """

    num_actions: int | None = None
    size: int | None = None

    @property
    def num_outputs(self) -> int:
        """How many numbers the actor returns per step."""
        found = self.num_actions if self.num_actions is not None else self.size
        assert found is not None, "one of the two is given"
        return found


class ActorCritic(nn.Module):
    """An actor and a critic, with a body in front of each or one body for both.

    Args:
        observations: what an observation is.
        actions: what an action is.
        body: called once, or once for the actor and once for the critic; returns a network over observations of shape
            [rows, *shape] and the number of its features.
        share_body: whether actor and critic read one body, which then learns from both losses.
        initial_log_std: of Gaussian actions, in nats; it is a parameter and does not depend on the observation.
    """

    def __init__(
        self,
        *,
        observations: ObservationSpec,
        actions: ActionSpec,
        body: Callable[[], tuple[nn.Module, int]],
        share_body: bool = False,
        initial_log_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.observations, self.actions = observations, actions
        shared, width = body() if share_body else (nn.Identity(), 0)
        self.body = shared
        self.actor, self.critic = (
            _with_head(body if not share_body else None, width, outputs=outputs, gain=gain)
            for outputs, gain in ((actions.num_outputs, 0.01), (1, 1.0))
        )
        # A table of one row and not a bare parameter: the scoring hooks know the gradient of a table.
        self.log_std: nn.Embedding | None = None
        if actions.size is not None:
            self.log_std = nn.Embedding(1, actions.size)
            nn.init.constant_(self.log_std.weight, initial_log_std)

    def forward(self, observations: Tensor, actions: Tensor, *, with_values: bool = True) -> PolicyOutput:
        """Return log-probs, entropy and values of what was done.

        Args:
            observations: shape [rows, steps, *shape].
            actions: shape [rows, steps] int64, or [rows, steps, size] float.
            with_values: also the critic's values.
        """
        steps = observations.shape[:2]
        features = self.features(observations.flatten(0, 1))
        outputs = self.actor(features).reshape(*steps, self.actions.num_outputs)
        log_probs, entropy = self._described(outputs, actions)
        values = self.critic(features).reshape(steps) if with_values else None
        return PolicyOutput(log_probs=log_probs, entropy=entropy, values=values)

    @torch.no_grad()
    def act(self, observations: Tensor, *, greedy: bool = False) -> Tensor:
        """Return one action per observation, [rows] int64 or [rows, size] float, from torch's random stream.

        Args:
            observations: shape [rows, *shape].
            greedy: take the most probable action.
        """
        outputs = self.actor(self.features(observations))
        if self.log_std is None:
            return outputs.argmax(-1) if greedy else torch.multinomial(outputs.softmax(-1), 1).squeeze(-1)
        return outputs if greedy else outputs + self.log_std.weight[0].exp() * torch.randn_like(outputs)

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """Return the critic's estimate of each observation, shape [rows].

        Args:
            observations: shape [rows, *shape].
        """
        found: Tensor = self.critic(self.features(observations)).squeeze(-1)
        return found

    def features(self, observations: Tensor) -> Tensor:
        """Return observations as floats, behind the common body if there is one.

        Args:
            observations: shape [rows, *shape].
        """
        spec = self.observations
        if spec.num_values is not None:
            numbers = nn.functional.one_hot(observations.long(), spec.num_values)
        else:
            # Convolutions read the channels first.
            numbers = observations.movedim(-1, 1) if spec.is_image else observations
        # Of the head, which is at hand: `parameters()` walks through the modules, once per step of an environment.
        floats = numbers.to(cast(nn.Linear, self.actor[-1]).weight.dtype)
        found: Tensor = self.body(floats / 255 if spec.is_image else floats)
        return found

    def _described(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs of actions and the entropy, both [rows, steps]."""
        if self.log_std is None:
            log_probs = outputs.log_softmax(-1)
            chosen = log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
            return chosen, -(log_probs.exp() * log_probs).sum(-1)
        # Looked up once per step, so that each row has a gradient of its own.
        log_std = self.log_std(torch.zeros(actions.shape[:-1], dtype=torch.long, device=actions.device))
        scaled = (actions - outputs) * torch.exp(-log_std)
        log_probs = -0.5 * scaled.square() - log_std - _HALF_LOG_TWO_PI
        return log_probs.sum(-1), (log_std + 0.5 + _HALF_LOG_TWO_PI).sum(-1)


_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class PolicyBuilder(ABC):
    """Builds an `ActorCritic` when the environment has told what it needs: the `policy` of a `ControlPPOModule`."""

    @abstractmethod
    def build(self, observations: ObservationSpec, actions: ActionSpec) -> ActorCritic:
        """Return a new network; its weights come from torch's random stream.

        Args:
            observations: of the environment.
            actions: of the environment.

        Raises:
            UserError: the network cannot read these observations.
        """


class MLP(PolicyBuilder):
    """Fully connected networks with tanh, one for the actor and one for the critic.

    Initialised as in stable-baselines3: orthogonal, gain sqrt(2) inside, 0.01 for the actor's last layer, 1 for the
    critic's, biases 0.

    Args:
        hidden: width of each hidden layer, >= 1.
        initial_log_std: of Gaussian actions, in nats.

    Raises:
        UserError: a width out of its range.
    """

    def __init__(self, hidden: Sequence[int] = (64, 64), initial_log_std: float = 0.0) -> None:
        self.hidden = _checked_sizes("policy.hidden", hidden)
        self.initial_log_std = initial_log_std

    def build(self, observations: ObservationSpec, actions: ActionSpec) -> ActorCritic:
        """Return the networks; an observation of several axes is read as one vector."""
        size = observations.num_values or math.prod(observations.shape)
        return ActorCritic(
            observations=observations,
            actions=actions,
            body=lambda: _layers([nn.Flatten()], size, self.hidden, nn.Tanh),
            initial_log_std=self.initial_log_std,
        )


class CNN(PolicyBuilder):
    """Convolutions of 3 x 3 with ReLU, then fully connected layers with ReLU, for small images as those of MiniGrid.

    The default is the network of Hu et al. 2025 (arXiv 2505.19281) for MiniGrid: actor and critic share it.

    Args:
        channels: of each convolution, >= 1.
        hidden: width of each layer behind them, >= 1.
        share_body: whether actor and critic read one body, which then learns from both losses.
        initial_log_std: of Gaussian actions, in nats.

    Raises:
        UserError: a size out of its range; later, observations that are no images.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        hidden: Sequence[int] = (64,),
        share_body: bool = True,
        initial_log_std: float = 0.0,
    ) -> None:
        self.channels = _checked_sizes("policy.channels", channels)
        self.hidden = _checked_sizes("policy.hidden", hidden)
        self.share_body = share_body
        self.initial_log_std = initial_log_std

    def build(self, observations: ObservationSpec, actions: ActionSpec) -> ActorCritic:
        """Return the networks.

        Raises:
            UserError: the observations are no images, or smaller than the convolutions.
        """
        smallest = 1 + 2 * len(self.channels)
        if not observations.is_image or min(observations.shape[:2]) < smallest:
            found = "x".join(map(str, observations.shape)) or "a number"
            raise UserError(
                f"policy: CNN reads images of bytes of at least {smallest} x {smallest}, and an observation is "
                f"{found}; use MLP"
            )
        return ActorCritic(
            observations=observations,
            actions=actions,
            body=lambda: self._body(*observations.shape),
            share_body=self.share_body,
            initial_log_std=self.initial_log_std,
        )

    def _body(self, height: int, width: int, depth: int) -> tuple[nn.Module, int]:
        layers: list[nn.Module] = []
        for before, after in zip((depth, *self.channels[:-1]), self.channels, strict=True):
            layers += [_orthogonal(nn.Conv2d(before, after, kernel_size=3), gain=math.sqrt(2)), nn.ReLU()]
        cut = 2 * len(self.channels)
        size = (height - cut) * (width - cut) * self.channels[-1]
        return _layers([*layers, nn.Flatten()], size, self.hidden, nn.ReLU)


def _checked_sizes(field: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if not sizes:
        raise UserError(f"{field}: [] is empty; expected at least one size")
    for size in sizes:
        require_range(field, size, at_least=1, integer=True)
    return tuple(sizes)


def _layers(
    first: Sequence[nn.Module], size: int, hidden: Sequence[int], activation: Callable[[], nn.Module]
) -> tuple[nn.Module, int]:
    layers = list(first)
    for before, after in zip((size, *hidden[:-1]), hidden, strict=True):
        layers += [_orthogonal(nn.Linear(before, after), gain=math.sqrt(2)), activation()]
    return nn.Sequential(*layers), hidden[-1]


def _with_head(
    body: Callable[[], tuple[nn.Module, int]] | None, width: int, *, outputs: int, gain: float
) -> nn.Sequential:
    before, width = body() if body is not None else (nn.Identity(), width)
    return nn.Sequential(before, _orthogonal(nn.Linear(width, outputs), gain=gain))


def _orthogonal(layer: Any, *, gain: float) -> nn.Module:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    found: nn.Module = layer
    return found
