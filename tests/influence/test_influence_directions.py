"""A target gradient is the plain gradient of the mean loss; directions can be selected, scaled, averaged, compared."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from small_nets import a_batch, a_net, squared_errors
from tiny_language_models import a_direction
from torch import Tensor, nn

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
from ippo_lightning.influence.directions import require_adam

EXACT = 1e-12


def mean_error(model: nn.Module, batch: object) -> torch.Tensor:
    return squared_errors(model, batch).mean()


def a_small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1)).double()


def inputs(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0], [2, 2, 2]])
def test_a_target_gradient_is_the_gradient_of_the_weighted_mean_loss(weights: list[float] | None) -> None:
    model = a_small_model()
    direction = target_gradient(model, mean_square, iter(inputs()), weights=weights)
    factors = torch.tensor(weights or [1.0, 1.0, 1.0], dtype=torch.float64)
    oracle = copy.deepcopy(model).eval()
    losses = torch.stack([mean_square(oracle, batch) for batch in inputs()])
    ((factors * losses).sum() / factors.sum()).backward()
    assert list(direction) == [name for name, _ in model.named_parameters()]
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(direction[name], parameter.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_a_target_gradient_is_summed_in_float32_or_better(dtype: torch.dtype, expected: torch.dtype) -> None:
    model = nn.Linear(1, 1, bias=False).to(dtype)
    # Adding 2^-9 to 1 twenty times changes nothing in bfloat16 and is exact in float32.
    steps = [torch.ones(1, 1, dtype=dtype)] + [torch.full((1, 1), 2.0**-9, dtype=dtype)] * 20
    direction = target_gradient(model, lambda m, b: m(b).sum(), steps)
    assert direction["weight"].dtype == expected
    assert direction["weight"].item() * 21 == pytest.approx(1 + 20 * 2.0**-9, rel=1e-6)


def test_frozen_parameters_have_no_block_and_unused_ones_have_a_zero_block() -> None:
    model = a_small_model()
    model[0].bias.requires_grad_(False)
    direction = target_gradient(model, lambda m, b: m[0](b).square().mean(), inputs())
    assert list(direction) == ["0.weight", "3.weight", "3.bias"]
    assert bool(direction["0.weight"].count_nonzero())
    assert not bool(direction["3.weight"].count_nonzero())
    assert not any(block.requires_grad for block in direction.values())


def test_a_sparse_embedding_gives_a_dense_block() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    block = target_gradient(table, lambda m, b: m(b).sum(), [torch.tensor([1, 1, 4])])["weight"]
    assert block.tolist() == [[0, 0], [2, 2], [0, 0], [0, 0], [1, 1]]


OUTSIDE = inputs()  # made here, because a backward does not accept tensors made in inference mode


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_a_target_gradient_leaves_the_model_and_the_random_state_as_they_were(failing: bool, inference: bool) -> None:
    model = a_small_model()
    mean_square(model, inputs()[0]).backward()
    model[1].eval()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    calls = []

    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        calls.append(torch.rand(1))
        if failing and len(calls) == 2:
            raise KeyError("an error in between")
        return mean_square(module, batch)

    with torch.inference_mode(inference):
        if failing:
            with pytest.raises(KeyError):
                target_gradient(model, loss, OUTSIDE)
            assert len(calls) == 2
        else:
            target_gradient(model, loss, OUTSIDE)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), gradients, strict=True))


def nan_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return mean_square(model, batch) * torch.nan


@pytest.mark.parametrize(
    ("loss", "count", "weights", "message"),
    [
        (mean_square, 0, None, "expected at least one batch"),
        (mean_square, 3, [0.0, 0.0, 0.0], "weights sum to 0"),
        (mean_square, 3, [1.0, 1.0], "weights: got 2 for more batches"),
        (mean_square, 3, [1.0] * 4, "weights: got 4 for 3 batches"),
        (mean_square, 3, [1.0, -1.0, 1.0], "weights: got -1.0 for batch 1"),
        (nan_loss, 3, None, r"gradient for '0\.weight' contains NaN"),
        (lambda m, b: m(b), 3, None, r"loss: returned shape \(5, 1\), expected a 0-dim tensor"),
        (lambda m, b: 0.0, 3, None, "loss: returned float"),
        (lambda m, b: b.sum(), 3, None, "without a graph"),
    ],
)
def test_the_error_about_a_wrong_argument_explains_it(
    loss: object, count: int, weights: list[float] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        target_gradient(a_small_model(), loss, inputs(count), weights=weights)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        target_gradient(a_small_model().requires_grad_(False), mean_square, inputs())


def test_patterns_select_blocks_and_exclude_has_priority() -> None:
    direction = {name: torch.ones(1) for name in ("layers.1.q.weight", "layers.1.norm.weight", "layers.2.q.weight")}
    assert list(select_blocks(direction, include=["layers.1.*"])) == ["layers.1.q.weight", "layers.1.norm.weight"]
    assert list(select_blocks(direction, exclude=["*norm*"])) == ["layers.1.q.weight", "layers.2.q.weight"]
    assert list(select_blocks(direction, include=["layers.1.*"], exclude=["*norm*"])) == ["layers.1.q.weight"]
    assert list(select_blocks(direction)) == list(direction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["*.k.*"]}, "include: '\\*.k.\\*' matches no parameter"),
        ({"exclude": ["typo"]}, "exclude: 'typo' matches no parameter"),
        ({"exclude": ["*"]}, "leaves no parameter"),
    ],
)
def test_the_error_about_a_pattern_without_match_names_it(options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_blocks({"weight": torch.ones(1)}, **options)


def test_scores_along_selected_and_other_blocks_sum_to_the_score_along_all() -> None:
    model = a_net()
    direction, batches = a_direction(model), [a_batch()]
    total = influence_scores(model, squared_errors, batches, direction)
    parts = [
        influence_scores(model, squared_errors, batches, select_blocks(direction, **options))
        for options in ({"include": ["first.*", "norm.*"]}, {"exclude": ["first.*", "norm.*"]})
    ]
    torch.testing.assert_close(parts[0] + parts[1], total, rtol=EXACT, atol=EXACT)
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
    # With the second moment fixed, an Adam step along g_i changes the target by -lr <g_i, V / (sqrt v + eps)>.
    model = a_net().eval()
    optimizer = build(model.parameters())
    for seed in range(4):
        mean_error(model, a_batch(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
    episode, demonstrations = a_batch(1, seed=9), a_batch(8, seed=10)
    direction = target_gradient(model, mean_error, [demonstrations])
    overwritten = {name: block.clone() for name, block in direction.items()}
    scaled = precondition(direction, model=model, optimizer=SimpleNamespace(optimizer=optimizer))
    precondition(overwritten, model=model, optimizer=optimizer, in_place=True)
    assert all(torch.equal(overwritten[name], scaled[name]) for name in scaled), "to the bit"
    (score,) = influence_scores(model, squared_errors, [episode], scaled)
    gradients = torch.autograd.grad(squared_errors(model, episode).sum(), list(model.parameters()))
    expected = 0.0
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        state, group = optimizer.state[parameter], optimizer.param_groups[0]
        second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        step = gradient / ((second / (1 - 0.9 ** float(state["step"]))).sqrt() + group["eps"])
        expected += float((step * direction[name]).sum())
    assert float(score) == pytest.approx(expected, rel=1e-9)
    assert not torch.allclose(scaled["first.weight"], direction["first.weight"])


def test_a_step_of_torch_adam_is_along_the_scaled_gradient() -> None:
    # After one step, v_hat is the square of that step's gradient, and a second equal gradient does not change it.
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


def test_before_the_first_step_a_direction_is_not_scaled_and_other_optimizers_are_refused() -> None:
    model = a_net()
    direction = a_direction(model)
    adam = torch.optim.Adam(model.parameters())
    assert all(
        torch.equal(precondition(direction, model=model, optimizer=adam)[name], direction[name]) for name in direction
    )
    # Neither has a state now, and the first one never has.
    for momentum in (0.0, 0.9):
        plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        with pytest.raises(UserError, match="SGD keeps no second moments"):
            precondition(direction, model=model, optimizer=plain)
    others = torch.optim.Adamax(model.parameters())
    mean_error(model, a_batch()).backward()
    others.step()
    with pytest.raises(UserError, match="Adamax keeps no second moments"):
        precondition(direction, model=model, optimizer=others)
    # Eight bits are codes and not moments; this shows before the first step.
    with pytest.raises(UserError, match="AdamW8bit keeps no second moments"):
        require_adam(AdamW8bit(model.parameters()))
    with pytest.raises(UserError, match="optimizer: got list, expected Adam"):
        precondition(direction, model=model, optimizer=[adam])


def test_groups_average_to_the_gradient_of_all() -> None:
    model = a_net()
    sizes = (3, 5, 2, 4, 1)
    batches = [a_batch(size, seed=size) for size in sizes]
    weights = [float(size) for size in sizes]
    groups = target_gradient_groups(model, mean_error, batches, num_groups=2, weights=weights)
    assert groups.weights == [6.0, 9.0]
    full = target_gradient(model, mean_error, batches, weights=weights)
    mean = mean_direction(groups.directions, weights=groups.weights)
    for name, block in full.items():
        torch.testing.assert_close(mean[name], block, rtol=EXACT, atol=EXACT)
    second = target_gradient(model, mean_error, batches[1::2], weights=weights[1::2])
    torch.testing.assert_close(groups.directions[1]["first.weight"], second["first.weight"], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("count", "num_groups", "message"), [(1, 2, "each of 2 groups"), (2, 0, "num_groups: got 0")])
def test_groups_without_batches_are_refused(count: int, num_groups: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        target_gradient_groups(a_net(), mean_error, [a_batch()] * count, num_groups=num_groups)


def test_the_agreement_of_halves_is_their_cosine() -> None:
    one, other = (
        {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])},
        {"a": torch.tensor([-3.0]), "b": torch.tensor([-4.0])},
    )
    assert halves_agreement(one, one) == pytest.approx(1)
    assert halves_agreement(one, other) == pytest.approx(-1)
    assert halves_agreement(one, {name: torch.zeros(1) for name in one}) == 0.0
    with pytest.raises(UserError, match="all with the same parameters"):
        mean_direction([one, {"a": torch.ones(1)}])
