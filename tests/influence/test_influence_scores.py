"""Scores of any module equal their definition, values computed by hand, and the effect of a small step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from small_nets import Batch, Net, a_batch, a_net, squared_errors
from tiny_language_models import a_direction, relative_error, scores_by_definition
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ippo_lightning.influence import (
    influence_scores,
    target_gradient,
)

EXACT = 1e-10  # float64 throughout, two orders of summation
SECOND_ORDER = 1e-2  # a score is of the first order in the step; the rest is about the step times the curvature


def test_a_module_that_is_called_twice_counts_twice() -> None:
    model, batch = a_net(), a_batch()
    direction = a_direction(model)
    expected = scores_by_definition(model, squared_errors, batch, direction)
    assert relative_error(influence_scores(model, squared_errors, [batch], direction), expected) < EXACT
    later = influence_scores(model, squared_errors, [batch, batch], direction)[len(expected) :]
    assert relative_error(later, expected) < EXACT


def test_a_score_equals_a_value_computed_by_hand() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    inputs = torch.tensor([[1.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    direction = {"weight": torch.tensor([[10.0, 100.0]], dtype=torch.float64)}
    # d(y^2) = 2 y x, y = 1 and 5: gradients (2, 0) and (30, 10).
    scores = influence_scores(model, lambda module, batch: module(batch).squeeze(1).square(), [inputs], direction)
    assert scores.tolist() == [20.0, 1300.0]


@pytest.mark.parametrize("method", ["hooks", "per_episode"])
def test_an_episode_that_is_the_validation_set_scores_its_squared_gradient_norm(method: str) -> None:
    model, batch = a_net().eval(), a_batch(1)
    direction = target_gradient(model, lambda module, part: squared_errors(module, part).mean(), [batch])
    (score,) = influence_scores(model, squared_errors, [batch], direction, method=method)
    assert score > 0
    torch.testing.assert_close(score, sum(block.square().sum() for block in direction.values()), rtol=1e-12, atol=0)
    (negated,) = influence_scores(model, lambda m, b: -squared_errors(m, b), [batch], direction, method=method)
    torch.testing.assert_close(negated, -score, rtol=1e-12, atol=0)


def test_a_small_step_on_an_episode_changes_the_validation_loss_by_its_score() -> None:
    model, episodes, validation = a_net().eval(), a_batch(6), a_batch(8, seed=2)

    def validation_loss(module: nn.Module, batch: Batch) -> Tensor:
        return squared_errors(module, batch).mean()

    direction = target_gradient(model, validation_loss, [validation])
    scores = influence_scores(model, squared_errors, [episodes], direction)
    before, step = validation_loss(model, validation), 1e-6
    for row, score in enumerate(scores):
        moved = copy.deepcopy(model)
        squared_errors(moved, episodes)[row].backward()
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.sub_(step * parameter.grad)
        change = (validation_loss(moved, validation) - before).item()
        small = step * float(scores.abs().max()) * 1e-3
        assert change == pytest.approx(-step * float(score), rel=SECOND_ORDER, abs=small)


@pytest.mark.parametrize("factor", [-2.0, 0.5, 0.0])
def test_scores_are_linear_in_the_direction(factor: float) -> None:
    model, batch = a_net(), a_batch()
    direction = a_direction(model)
    scaled = {name: factor * block for name, block in direction.items()}
    scores = influence_scores(model, squared_errors, [batch], direction)
    torch.testing.assert_close(
        influence_scores(model, squared_errors, [batch], scaled), factor * scores, rtol=1e-12, atol=0
    )


def test_scores_add_up_over_blocks_and_a_missing_block_counts_as_zero() -> None:
    model, batch = a_net(), a_batch()
    direction = a_direction(model)
    parts = [influence_scores(model, squared_errors, [batch], {name: block}) for name, block in direction.items()]
    total = influence_scores(model, squared_errors, [batch], direction)
    assert relative_error(torch.stack(parts).sum(0), total) < EXACT


def test_there_is_one_score_per_episode_in_the_order_of_the_batches() -> None:
    model = a_net()
    direction = a_direction(model)
    batches = [a_batch(2, seed=3), a_batch(0), a_batch(5, seed=4)]
    scores = influence_scores(model, squared_errors, iter(batches), direction)
    alone = [influence_scores(model, squared_errors, [batch], direction) for batch in batches]
    assert scores.shape == (7,)
    torch.testing.assert_close(scores, torch.cat(alone), rtol=1e-12, atol=0)
    assert influence_scores(model, squared_errors, [], direction).shape == (0,)


@pytest.mark.parametrize("method", ["hooks", "per_episode"])
def test_scores_have_the_dtype_of_the_direction(method: str) -> None:
    model = Net().float()
    batch = tuple(part.float() for part in a_batch())
    direction = a_direction(model)
    assert influence_scores(model, squared_errors, [batch], direction, method=method).dtype == torch.float32
    double = {name: block.double() for name, block in direction.items()}
    assert influence_scores(model, squared_errors, [batch], double, method=method).dtype == torch.float64


class Checkpointed(Net):
    """Recomputes all layers but the last."""

    reentrant = False

    def forward(self, inputs: Tensor) -> Tensor:
        body = nn.Sequential(self.first, self.activation, self.shared, nn.Tanh(), self.shared, self.norm)
        return self.last(checkpoint(body, inputs, use_reentrant=self.reentrant)).squeeze(-1)


def test_a_forward_with_checkpoints_has_the_same_scores() -> None:
    model, batch = a_net(Checkpointed()), a_batch()
    direction = a_direction(model)
    expected = scores_by_definition(model, squared_errors, batch, direction)
    scores = influence_scores(model, squared_errors, [batch, batch], direction)
    assert relative_error(scores, expected.repeat(2)) < EXACT


def test_scoring_keeps_no_activations_that_a_checkpoint_frees() -> None:
    model, batch = a_net(Checkpointed()), a_batch()
    seen: list[StorageWeakRef] = []
    model.shared.register_forward_pre_hook(lambda _, args: seen.append(StorageWeakRef(args[0].untyped_storage())))
    alive: list[int] = []

    def losses(module: nn.Module, part: Batch) -> Tensor:
        seen.clear()
        result = squared_errors(module, part)
        alive.append(sum(not storage.expired() for storage in seen))
        return result

    influence_scores(model, losses, [batch, batch], a_direction(model))
    assert alive == [0, 0]


def test_a_forward_without_gradients_in_between_does_not_count() -> None:
    model, batch = a_net(), a_batch()
    direction = a_direction(model)

    def with_reference(module: nn.Module, part: Batch) -> Tensor:
        with torch.no_grad():
            module(part[0] * 2)
        return squared_errors(module, part)

    scores = influence_scores(model, with_reference, [batch, batch], direction)
    expected = influence_scores(model, squared_errors, [batch, batch], direction)
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_scoring_works_inside_no_grad_and_inference_mode(context: Callable[[], object]) -> None:
    model, batch = a_net(), a_batch()
    direction = a_direction(model)
    expected = influence_scores(model, squared_errors, [batch], direction)
    with context():
        assert torch.equal(influence_scores(model, squared_errors, [batch], direction), expected)


def test_hooks_of_scoring_run_before_other_hooks_change_the_output() -> None:
    model, batch = a_net(), a_batch()
    model.shared.register_forward_hook(lambda _, __, output: output.sin())
    direction = a_direction(model)
    expected = scores_by_definition(model, squared_errors, batch, direction)
    assert relative_error(influence_scores(model, squared_errors, [batch], direction), expected) < EXACT


def test_a_module_that_is_called_by_keyword_counts() -> None:
    class ByKeyword(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(input=self.norm(input=self.first(input=inputs))).squeeze(-1)

    model, batch = a_net(ByKeyword()), a_batch()
    direction = a_direction(model)
    expected = scores_by_definition(model, squared_errors, batch, direction)
    assert relative_error(influence_scores(model, squared_errors, [batch], direction), expected) < EXACT


def test_autocast_around_the_call_does_not_round_the_sums() -> None:
    model = Net().float()
    batch = tuple(part.float() for part in a_batch())
    direction = a_direction(model)

    def losses_in_full_precision(module: nn.Module, part: Batch) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return squared_errors(module, part)

    expected = influence_scores(model, squared_errors, [batch, batch], direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = influence_scores(model, losses_in_full_precision, [batch, batch], direction)
    assert relative_error(scores, expected) < 1e-6
