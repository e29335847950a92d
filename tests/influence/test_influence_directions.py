"""What is done to a direction: chosen blocks, Adam's scaling, means, halves."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from small_nets import a_batch, a_net, squared_errors
from tiny_language_models import a_direction
from torch import nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence import (
    halves_agreement,
    influence_scores,
    mean_direction,
    precondition,
    select_blocks,
    target_gradient,
    target_gradient_groups,
)

EXACT = 1e-12


def mean_error(model: nn.Module, batch: object) -> torch.Tensor:
    return squared_errors(model, batch).mean()


def test_patterns_choose_blocks_and_exclusion_wins() -> None:
    direction = {name: torch.ones(1) for name in ("layers.1.q.weight", "layers.1.norm.weight", "layers.2.q.weight")}
    assert list(select_blocks(direction, include=["layers.1.*"])) == ["layers.1.q.weight", "layers.1.norm.weight"]
    assert list(select_blocks(direction, exclude=["*norm*"])) == ["layers.1.q.weight", "layers.2.q.weight"]
    assert list(select_blocks(direction, include=["layers.1.*"], exclude=["*norm*"])) == ["layers.1.q.weight"]
    assert list(select_blocks(direction)) == list(direction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["*.k.*"]}, "include: '\\*.k.\\*' fits no parameter"),
        ({"exclude": ["typo"]}, "exclude: 'typo' fits no parameter"),
        ({"exclude": ["*"]}, "leaves no parameter"),
    ],
)
def test_patterns_that_choose_nothing_are_named(options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_blocks({"weight": torch.ones(1)}, **options)


def test_scores_along_chosen_and_other_blocks_sum_to_the_whole() -> None:
    model = a_net()
    direction, batches = a_direction(model), [a_batch()]
    whole = influence_scores(model, squared_errors, batches, direction)
    parts = [
        influence_scores(model, squared_errors, batches, select_blocks(direction, **options))
        for options in ({"include": ["first.*", "norm.*"]}, {"exclude": ["first.*", "norm.*"]})
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=EXACT, atol=EXACT)
    assert parts[0].abs().min() > 0


@pytest.mark.parametrize(
    "build",
    [
        lambda parameters: torch.optim.Adam(parameters, lr=1e-9, betas=(0.0, 0.9)),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-9, betas=(0.0, 0.9), weight_decay=0.0),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-9, betas=(0.0, 0.9), amsgrad=True),
    ],
    ids=["adam", "adamw", "amsgrad"],
)
def test_the_scaled_score_is_the_effect_of_an_adam_step(build: object) -> None:
    # with the second moment held, an Adam step along g_i moves the target by -lr <g_i, V / (sqrt v + eps)>
    model = a_net().eval()
    optimizer = build(model.parameters())
    for seed in range(4):
        mean_error(model, a_batch(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
    episode, demonstrations = a_batch(1, seed=9), a_batch(8, seed=10)
    direction = target_gradient(model, mean_error, [demonstrations])
    scaled = precondition(direction, model=model, optimizer=SimpleNamespace(optimizer=optimizer))
    (score,) = influence_scores(model, squared_errors, [episode], scaled)
    gradients = torch.autograd.grad(squared_errors(model, episode).sum(), list(model.parameters()))
    expected = 0.0
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        state, group = optimizer.state[parameter], optimizer.param_groups[0]
        second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        step = gradient / ((second / (1 - 0.9 ** float(state["step"]))).sqrt() + group["eps"])
        expected += float((step * direction[name]).sum())
    assert float(score) == pytest.approx(expected, rel=1e-9)
    # and it is what torch's own step does, where that does not change the second moment: the same gradient again
    assert not torch.allclose(scaled["first.weight"], direction["first.weight"])


def test_torch_itself_steps_along_the_scaled_gradient() -> None:
    # After one step, v_hat is the square of that step's gradient, and a second equal gradient leaves it there.
    model, batch = a_net().eval(), a_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-7, betas=(0.0, 0.9))
    gradients = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(mean_error(model, batch), list(model.parameters())),
            strict=True,
        )
    )

    def step() -> None:
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        optimizer.step()

    step()
    before = copy.deepcopy(dict(model.named_parameters()))
    scaled = precondition(gradients, model=model, optimizer=optimizer)
    step()
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter).detach() / 1e-7
        torch.testing.assert_close(moved, scaled[name], rtol=1e-5, atol=1e-5)


def test_before_the_first_step_nothing_is_scaled_and_other_optimizers_are_refused() -> None:
    model = a_net()
    direction = a_direction(model)
    adam = torch.optim.Adam(model.parameters())
    assert all(
        torch.equal(precondition(direction, model=model, optimizer=adam)[name], direction[name]) for name in direction
    )
    momentum = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mean_error(model, a_batch()).backward()
    momentum.step()
    with pytest.raises(UserError, match="SGD keeps no second moments"):
        precondition(direction, model=model, optimizer=momentum)


def test_groups_average_to_the_gradient_of_all() -> None:
    model = a_net()
    sizes = (3, 5, 2, 4, 1)
    batches = [a_batch(size, seed=size) for size in sizes]
    weights = [float(size) for size in sizes]
    groups = target_gradient_groups(model, mean_error, batches, num_groups=2, weights=weights)
    assert groups.weights == [6.0, 9.0]
    whole = target_gradient(model, mean_error, batches, weights=weights)
    mean = mean_direction(groups.directions, weights=groups.weights)
    for name, block in whole.items():
        torch.testing.assert_close(mean[name], block, rtol=EXACT, atol=EXACT)
    second = target_gradient(model, mean_error, batches[1::2], weights=weights[1::2])
    torch.testing.assert_close(groups.directions[1]["first.weight"], second["first.weight"], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("count", "num_groups", "message"), [(1, 2, "each of 2 groups"), (2, 0, "num_groups: got 0")])
def test_groups_that_cannot_be_filled_are_refused(count: int, num_groups: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        target_gradient_groups(a_net(), mean_error, [a_batch()] * count, num_groups=num_groups)


def test_halves_agree_as_their_cosine() -> None:
    one, other = (
        {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])},
        {"a": torch.tensor([-3.0]), "b": torch.tensor([-4.0])},
    )
    assert halves_agreement(one, one) == pytest.approx(1)
    assert halves_agreement(one, other) == pytest.approx(-1)
    assert halves_agreement(one, {name: torch.zeros(1) for name in one}) == 0.0
    with pytest.raises(UserError, match="all with the same parameters"):
        mean_direction([one, {"a": torch.ones(1)}])
