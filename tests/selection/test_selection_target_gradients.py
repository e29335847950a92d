"""A resumed run goes on with the kept gradient of the target, unless the target is another one."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.target_gradients import TargetGradientCache
from ippo_lightning.selection.targets import TargetLoss

BATCH = {"inputs": [[1.0, 2.0], [3.0, -1.0]]}
OTHER = {"inputs": [[1.0, 2.0], [3.0, -2.0]]}


def target_of(*batches: Any, **changes: Any) -> Callable[[], TargetLoss]:
    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        inputs = torch.tensor(batch["inputs"], device=next(module.parameters()).device)
        return module(inputs).square().mean()

    return lambda: TargetLoss(loss, batches, **changes)


def cache_with(state: dict[str, Any] | None = None) -> TargetGradientCache:
    cache = TargetGradientCache(ScoringSettings(refresh_every_n_iterations=5, health_every_n_iterations=0))
    if state is not None:
        cache.load_state_dict(state)
    return cache


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(2, 1)


@pytest.fixture
def saved(module: nn.Module) -> dict[str, Any]:
    cache = cache_with()
    cache.take(module, target_of(BATCH, max_tokens=64), iteration=0)
    return cache.state_dict()


def moved(module: nn.Module) -> nn.Module:
    """Change the parameters, so that a gradient that is taken again differs."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    return module


def test_the_same_demonstrations_keep_their_gradient(module: nn.Module, saved: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cache_with(saved).take(moved(module), target_of(BATCH, max_tokens=64), iteration=1)
    assert torch.equal(found.mean["weight"], saved["mean"]["weight"])


def test_the_order_of_the_demonstrations_and_what_is_drawn_for_it_change_nothing(
    module: nn.Module, saved: dict[str, Any]
) -> None:
    reversed_rows = {"inputs": BATCH["inputs"][::-1]}

    def shuffled() -> TargetLoss:
        torch.rand(3)
        return target_of({"inputs": reversed_rows["inputs"][:1]}, {"inputs": reversed_rows["inputs"][1:]})()

    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cache_with(saved).take(moved(module), shuffled, iteration=1)
    assert torch.equal(found.mean["weight"], saved["mean"]["weight"])
    assert torch.equal(before, torch.get_rng_state()), "an unbroken run does not read the demonstrations here"


def test_without_a_kept_gradient_the_demonstrations_are_read_once(module: nn.Module) -> None:
    settings = ScoringSettings(health_every_n_iterations=0)
    first = TargetGradientCache(settings)
    first.take(module, target_of(BATCH, max_tokens=64), iteration=0)
    resumed, called = TargetGradientCache(settings), []
    resumed.load_state_dict(first.state_dict())

    def target() -> TargetLoss:
        called.append(1)
        return target_of(BATCH, max_tokens=64)()

    resumed.take(module, target, iteration=1)
    assert called == [1]


def test_other_demonstrations_are_said_and_their_gradient_is_taken(module: nn.Module, saved: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="demonstrations are not those of the checkpoint; their gradient is taken"):
        found = cache_with(saved).take(module, target_of(OTHER, max_tokens=64), iteration=1)
    expected = cache_with().take(module, target_of(OTHER), iteration=0)
    assert torch.equal(found.mean["weight"], expected.mean["weight"])


@pytest.mark.parametrize(("setting", "tokens"), [(64, 7), (32, 32)], ids=["as before", "another setting"])
def test_the_size_of_passes_goes_on_unless_another_is_set(
    module: nn.Module, saved: dict[str, Any], setting: int, tokens: int
) -> None:
    saved["size"]["tokens"] = 7  # memory has run out before
    cache = cache_with(saved)
    cache.take(module, target_of(BATCH, max_tokens=setting), iteration=1)
    assert cache.size is not None
    assert cache.size.tokens == tokens


def test_a_gradient_from_a_checkpoint_goes_to_the_device_of_the_module(
    module: nn.Module, saved: dict[str, Any]
) -> None:
    found = cache_with(saved).take(module.to("meta"), target_of(BATCH, max_tokens=64), iteration=1)
    assert found.mean["weight"].device.type == "meta"


def test_a_checkpoint_before_the_first_gradient_of_a_resumed_run_loses_nothing(saved: dict[str, Any]) -> None:
    assert cache_with(saved).state_dict() == saved


@pytest.mark.parametrize(("every", "is_kept"), [(1, False), (5, True)])
def test_only_a_gradient_that_a_later_iteration_reads_stays_in_memory(
    module: nn.Module, every: int, is_kept: bool
) -> None:
    cache = TargetGradientCache(ScoringSettings(refresh_every_n_iterations=every, health_every_n_iterations=0))
    taken = weakref.ref(cache.take(module, target_of(BATCH), iteration=0).mean["weight"])
    cache.release()
    gc.collect()
    assert (taken() is not None) == is_kept


def test_of_groups_that_do_not_fit_beside_the_model_only_one_is_in_memory(module: nn.Module) -> None:
    cache = TargetGradientCache(ScoringSettings(health_groups=2))
    groups: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def along(directions: Any, num_groups: int) -> None:
        groups.extend(weakref.ref(direction["weight"]) for direction in directions)
        alive.append(sum(group() is not None for group in groups))
        assert num_groups == 2

    found = cache.take(module, target_of(BATCH), iteration=0, along_groups=along)
    assert (alive, found.groups) == ([1, 1], [])
    assert all(group() is None for group in groups)
    # frozen weights beside it: then both groups take less than the model, and one pass scores along both
    module.register_parameter("frozen", nn.Parameter(torch.zeros(6), requires_grad=False))
    groups.clear()
    cache.take(module, target_of(BATCH), iteration=10, along_groups=along)
    assert alive == [1, 1, 2]
