"""Scoring leaves the model's state and the memory as they were."""

from __future__ import annotations

import pytest
import torch
from small_nets import Batch, a_batch, a_net, dirty_net, snapshot, squared_errors
from tiny_language_models import a_direction
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ippo_lightning.influence import CoverageError, influence_scores
from ippo_lightning.influence.model_state import undisturbed


@pytest.mark.parametrize("method", ["hooks", "per_episode"])
@pytest.mark.parametrize("failing", [None, 0, 1], ids=["without error", "first batch raises", "second batch raises"])
def test_scoring_leaves_everything_as_it_was(method: str, failing: int | None) -> None:
    model = dirty_net()
    before, calls = snapshot(model), []

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        torch.rand(3)
        calls.append(module.training)
        result = squared_errors(module, batch)
        if failing == len(calls) - 1:
            raise KeyError("an error while scoring")
        return result

    if failing is None:
        influence_scores(model, losses, [a_batch(), a_batch()], a_direction(model), method=method)
    else:
        with pytest.raises(KeyError):
            influence_scores(model, losses, [a_batch(), a_batch()], a_direction(model), method=method)
    assert len(calls) > 0
    assert not any(calls)
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)


def test_an_error_in_the_backward_leaves_everything_as_it_was() -> None:
    model = dirty_net()
    before = snapshot(model)

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        return squared_errors(module, batch).repeat(2)

    with pytest.raises(CoverageError):
        influence_scores(model, losses, [a_batch()], a_direction(model))
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)


def test_scoring_frees_all_memory_of_a_batch() -> None:
    model = a_net()
    alive: list[int] = []
    seen: list[StorageWeakRef] = []
    model.norm.register_forward_hook(lambda _, __, output: seen.append(StorageWeakRef(output.untyped_storage())))

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        alive.append(sum(not storage.expired() for storage in seen))
        return squared_errors(module, batch)

    influence_scores(model, losses, [a_batch(seed=seed) for seed in range(5)], a_direction(model))
    # Checked without a run of the garbage collector: a reference cycle would keep a batch's activations for a while.
    assert alive == [0] * 5
    assert len(seen) == 5
    assert all(storage.expired() for storage in seen)


def test_the_parameters_require_no_gradient_after_the_checked_batches() -> None:
    model, flags = a_net(), []

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        flags.append(module.last.weight.requires_grad)
        return squared_errors(module, batch)

    for checked in (1, 2, None, -1):
        influence_scores(model, losses, [a_batch()] * 3, a_direction(model), checksum_batches=checked)
    assert flags == [True, False, False, True, True, False, *[True] * 6]


def test_the_model_state_is_restored_after_changes_inside_the_block() -> None:
    model = dirty_net()
    before = snapshot(model)
    with undisturbed(model):
        model.train().requires_grad_(False)
        torch.rand(1)
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)
