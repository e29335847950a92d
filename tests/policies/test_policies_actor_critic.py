"""Networks for environments: their distributions are torch's, their start is that of stable-baselines3."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ippo_lightning.errors import UserError
from ippo_lightning.policies import CNN, MLP, ActionSpec, ActorCritic, ObservationSpec

ROWS, STEPS = 3, 5
SAMPLING_ERROR = 0.05
"""Of a frequency or mean over 20,000 draws: more than five standard errors."""
VECTOR = ObservationSpec(shape=(4,))
IMAGE = ObservationSpec(shape=(7, 7, 3), is_image=True)
NUMBER = ObservationSpec(shape=(), num_values=16)
DISCRETE, GAUSSIAN = ActionSpec(num_actions=3), ActionSpec(size=2)


def observations_of(spec: ObservationSpec) -> torch.Tensor:
    if spec.num_values is not None:
        return torch.randint(spec.num_values, (ROWS, STEPS))
    if spec.is_image:
        return torch.randint(256, (ROWS, STEPS, *spec.shape), dtype=torch.uint8)
    return torch.randn(ROWS, STEPS, *spec.shape)


def trained_a_little(policy: ActorCritic) -> ActorCritic:
    # the last layer starts near 0, where all actions look alike
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize(
    ("builder", "spec"),
    [(MLP(), VECTOR), (MLP(), NUMBER), (MLP(), IMAGE), (CNN(), IMAGE), (CNN(share_body=False), IMAGE)],
)
def test_categorical_log_probs_and_entropy_are_those_of_torch(builder: MLP | CNN, spec: ObservationSpec) -> None:
    policy, seen = trained_a_little(builder.build(spec, DISCRETE)), observations_of(spec)
    actions = torch.randint(3, (ROWS, STEPS))
    output = policy(seen, actions)
    logits = policy.actor(policy.features(seen.flatten(0, 1))).unflatten(0, (ROWS, STEPS))
    expected = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(output.log_probs, expected.log_prob(actions))
    torch.testing.assert_close(output.entropy, expected.entropy())
    torch.testing.assert_close(output.values.flatten(), policy.values(seen.flatten(0, 1)))


def test_gaussian_log_probs_and_entropy_are_those_of_torch() -> None:
    policy, seen = trained_a_little(MLP(initial_log_std=-0.5).build(VECTOR, GAUSSIAN)), observations_of(VECTOR)
    actions = torch.randn(ROWS, STEPS, 2)
    output = policy(seen, actions)
    assert policy.log_std is not None
    means = policy.actor(policy.features(seen.flatten(0, 1))).unflatten(0, (ROWS, STEPS))
    expected = torch.distributions.Normal(means, policy.log_std.weight[0].exp())
    torch.testing.assert_close(output.log_probs, expected.log_prob(actions).sum(-1))
    torch.testing.assert_close(output.entropy, expected.entropy().sum(-1).expand(ROWS, STEPS))


@pytest.mark.parametrize("actions", [DISCRETE, GAUSSIAN], ids=["categorical", "gaussian"])
def test_actions_are_drawn_as_often_as_their_probability_says(actions: ActionSpec) -> None:
    policy = trained_a_little(MLP().build(VECTOR, actions))
    one = torch.randn(1, 4)
    drawn = policy.act(one.expand(20000, 4))
    outputs = policy.actor(policy.features(one))[0].detach()
    if actions is DISCRETE:
        found = drawn.bincount(minlength=3) / 20000
        torch.testing.assert_close(found, outputs.softmax(-1), atol=SAMPLING_ERROR, rtol=0)
        assert int(policy.act(one, greedy=True)) == int(outputs.argmax())
    else:
        assert policy.log_std is not None
        std = policy.log_std.weight[0].exp()
        torch.testing.assert_close((drawn.mean(0) - outputs) / std, torch.zeros(2), atol=SAMPLING_ERROR, rtol=0)
        torch.testing.assert_close(drawn.std(0) / std, torch.ones(2), atol=SAMPLING_ERROR, rtol=0)
        assert torch.equal(policy.act(one, greedy=True)[0], outputs)


@pytest.mark.parametrize("builder", [MLP(), CNN(), CNN(share_body=False)], ids=["mlp", "shared", "apart"])
def test_layers_start_orthogonal_with_the_gains_of_stable_baselines(builder: MLP | CNN) -> None:
    policy = builder.build(IMAGE, DISCRETE)
    heads = {policy.actor[-1]: 0.01, policy.critic[-1]: 1.0}
    layers = [module for module in policy.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        weight = layer.weight.flatten(1)
        product = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        gain = heads.get(layer, math.sqrt(2))
        torch.testing.assert_close(product, gain**2 * torch.eye(len(product)), atol=1e-5, rtol=1e-4)
        assert not layer.bias.any()
    assert len(layers) == (6 if isinstance(builder, MLP) else 5 if builder.share_body else 8)


def test_the_same_seed_gives_the_same_network() -> None:
    first, second = (torch.manual_seed(3) and MLP().build(VECTOR, DISCRETE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("builder", [MLP(), CNN(), CNN(share_body=False)], ids=["mlp", "shared", "apart"])
def test_only_a_common_body_learns_from_the_critic(builder: MLP | CNN) -> None:
    policy = trained_a_little(builder.build(IMAGE, DISCRETE))
    policy(observations_of(IMAGE), torch.randint(3, (ROWS, STEPS))).values.sum().backward()
    touched = {name.partition(".")[0] for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert touched == ({"critic", "body"} if isinstance(builder, CNN) and builder.share_body else {"critic"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(hidden=[]), "policy.hidden: [] is empty"),
        (lambda: MLP(hidden=[0]), "policy.hidden: 0 is out of range"),
        (lambda: CNN().build(VECTOR, DISCRETE), "an observation is 4; use MLP"),
        (lambda: CNN(channels=[8] * 4).build(IMAGE, DISCRETE), "at least 9 x 9, and an observation is 7x7x3"),
    ],
)
def test_a_wrong_size_is_one_line(make: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()  # type: ignore[operator]
    assert message in str(error.value)
    assert "\n" not in str(error.value)
