"""Scoring raises an explained error if a score could not be trusted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_nets import Batch, Net, a_batch, a_net, dirty_net, squared_errors
from tiny_language_models import a_direction, relative_error, scores_by_definition
from torch import Tensor, nn

from ippo_lightning.errors import UserError
from ippo_lightning.influence import ChecksumError, CoverageError, NonFiniteScoreError, influence_scores

EXACT = 1e-10  # float64 throughout, two orders of summation


class Bypassed(nn.Module):
    """Uses a layer's weight without a call of the layer, as fused kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs))
        return nn.functional.linear(hidden, self.last.weight, self.last.bias).squeeze(-1)


class Mixing(nn.Module):
    """The output of each episode depends on all episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs))
        return self.last(hidden + hidden.mean(0, keepdim=True)).squeeze(-1)


class TokensFirst(nn.Module):
    """Has the tokens on the first axis; with as many tokens as episodes, no shape is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(inputs.transpose(0, 1)))).transpose(0, 1)


@pytest.mark.parametrize("module", [Bypassed, Mixing])
def test_the_checksum_finds_what_the_hooks_cannot_see(module: type[nn.Module]) -> None:
    model = a_net(module())
    with pytest.raises(ChecksumError, match="plain autograd"):
        influence_scores(model, squared_errors, [a_batch()], a_direction(model))
    expected = scores_by_definition(model, squared_errors, a_batch(), a_direction(model))
    scores = influence_scores(model, squared_errors, [a_batch()], a_direction(model), method="per_episode")
    assert relative_error(scores, expected) < EXACT


def test_the_checksum_finds_scores_credited_to_the_wrong_episodes() -> None:
    model = a_net(TokensFirst())
    with pytest.raises(ChecksumError):
        influence_scores(model, squared_errors, [a_batch(6, tokens=(6,))], a_direction(model))
    with pytest.raises(CoverageError, match="batch of 5 while there are 6 episodes"):
        influence_scores(model, squared_errors, [a_batch(6, tokens=(5,))], a_direction(model))


def test_the_checksum_checks_later_batches_on_request() -> None:
    model = a_net(Bypassed())

    def fused_later(module: nn.Module, batch: Batch) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            return squared_errors(module, batch)
        return (module.last(torch.tanh(module.first(batch[0]))).squeeze(-1) - batch[1]).square()

    calls: list[int] = []
    influence_scores(model, fused_later, [a_batch()] * 2, a_direction(model))
    for checked in (2, None, -1):
        calls = []
        with pytest.raises(ChecksumError):
            influence_scores(model, fused_later, [a_batch()] * 2, a_direction(model), checksum_batches=checked)


def test_losses_that_vanish_pass_the_checksum_with_zero_scores() -> None:
    model = a_net()
    scores = influence_scores(model, lambda m, b: 0.0 * squared_errors(m, b), [a_batch()], a_direction(model))
    assert torch.equal(scores, torch.zeros(6, dtype=torch.float64))


def test_losses_without_a_graph_score_zero() -> None:
    model = a_net()
    for method in ("hooks", "per_episode"):
        scores = influence_scores(model, lambda _, b: b[1], [a_batch()], a_direction(model), method=method)
        assert torch.equal(scores, torch.zeros(6, dtype=torch.float64))


def test_the_error_about_a_score_that_is_not_finite_names_its_episode() -> None:
    model = a_net().eval()

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        return squared_errors(module, batch) * torch.where(batch[1] == 7.0, torch.nan, 1.0)

    bad = a_batch()
    bad[1][4] = 7.0
    with pytest.raises(NonFiniteScoreError, match="episodes 10 are NaN"):
        influence_scores(model, losses, [a_batch(), bad], a_direction(model))
    assert issubclass(NonFiniteScoreError, UserError)


class WithRawParameter(Net):
    """Owns a parameter directly, outside any known kind of module."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * self.gain.mean()


class OtherLinear(nn.Linear):
    """Is a linear layer by class, but computes something else."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).square()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (WithRawParameter(), r"'gain' belongs to '\(the model itself\)' of type WithRawParameter"),
        (nn.Sequential(OtherLinear(4, 1), nn.Flatten(0)), r"'0\.weight' belongs to '0' of type OtherLinear"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 1)), nn.Flatten(0)), "ParametrizationList"),
    ],
    ids=["raw parameter", "overridden forward", "parametrized"],
)
def test_the_error_about_a_parameter_without_hook_names_it(module: nn.Module, message: str) -> None:
    model, batch = a_net(module), a_batch()
    direction = a_direction(model)
    with pytest.raises(CoverageError, match=message):
        influence_scores(model, squared_errors, [batch], direction)
    expected = scores_by_definition(model, squared_errors, batch, direction)
    scores = influence_scores(model, squared_errors, [batch], direction, method="per_episode")
    assert relative_error(scores, expected) < EXACT


def test_an_uncovered_parameter_is_allowed_if_the_direction_is_zero_on_it() -> None:
    model = a_net(WithRawParameter())
    direction = a_direction(model)
    direction["gain"].zero_()
    expected = scores_by_definition(model, squared_errors, a_batch(), direction)
    assert relative_error(influence_scores(model, squared_errors, [a_batch()], direction), expected) < EXACT


def test_a_parameter_with_a_second_name_in_its_module_is_refused() -> None:
    model = a_net(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)))
    model[0].alias = model[0].weight
    with pytest.raises(CoverageError, match="as 'alias'"):
        influence_scores(model, squared_errors, [a_batch()], a_direction(model))


def test_a_direction_orthogonal_to_all_gradients_passes_the_checksum() -> None:
    model = a_net().eval()
    episodes = a_batch()
    gradients = []
    for row in range(6):
        model.zero_grad()
        squared_errors(model, episodes)[row].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    model.zero_grad()
    basis = torch.linalg.qr(torch.stack(gradients).T).Q
    blocks = torch.cat([block.flatten() for block in a_direction(model).values()])
    for _ in range(2):
        blocks = blocks - basis @ (basis.T @ blocks)
    sizes = [parameter.numel() for parameter in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    parts = [part.view_as(p) for part, p in zip(blocks.split(sizes), model.parameters(), strict=True)]
    direction = {name: part.float() for name, part in zip(names, parts, strict=True)}
    model.float()
    scores = influence_scores(model, squared_errors, [tuple(part.float() for part in episodes)], direction)
    # The scores are only rounding errors, which depend on the order of summation, so a relative error has no meaning.
    assert scores.abs().max() < 1e-5 * torch.stack(gradients).norm(dim=1).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nobody": torch.ones(1)}, "'nobody' is no parameter"),
        ({"norm.weight": torch.ones(6)}, r"'norm\.weight' is frozen"),
        ({"first.bias": torch.ones(1)}, r"'first\.bias' has shape \(1,\), expected \(6,\)"),
        ({"first.bias": torch.full((6,), torch.nan)}, r"'first\.bias' contains NaN"),
    ],
)
def test_a_wrong_direction_is_explained(change: dict[str, Tensor], message: str) -> None:
    model = dirty_net()
    with pytest.raises(UserError, match=message):
        influence_scores(model, squared_errors, [a_batch()], a_direction(model) | change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "got 'magic', expected one of hooks, forward, finite_difference, per_episode"),
        ({"checksum_batches": -2}, "at least 0"),
    ],
)
def test_a_wrong_option_is_explained(options: dict[str, object], message: str) -> None:
    model = a_net()
    with pytest.raises(UserError, match=message):
        influence_scores(model, squared_errors, [a_batch()], a_direction(model), **options)


@pytest.mark.parametrize("losses", [lambda m, b: m(b[0]).sum(), lambda m, b: 1.0, lambda m, b: b[1].long()])
def test_wrong_losses_are_explained(losses: Callable[[nn.Module, Batch], Tensor]) -> None:
    model = a_net()
    with pytest.raises(UserError, match="episode_losses: returned"):
        influence_scores(model, losses, [a_batch()], a_direction(model))


def test_a_model_with_nothing_to_train_is_explained() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        influence_scores(a_net().requires_grad_(False), squared_errors, [a_batch()], {})
