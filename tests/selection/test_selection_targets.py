"""Targets: the return of the buffer is exact, however it is cut into batches, and demonstrations are found by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_parts import prepared, tiny_data, tiny_module

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import Episodes, UpdatePlan
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.selection import Demonstrations, ReturnOfBuffer, Target, TargetLoss
from ippo_lightning.selection.grouped_gradients import take_gradients
from ippo_lightning.selection.settings import ScoringSettings
from ippo_lightning.selection.target_gradients import TargetGradientCache

ROUNDING = 1e-5


@pytest.fixture
def module() -> PPOModule:
    return tiny_module()


@pytest.fixture
def episodes(module: PPOModule) -> Episodes:
    torch.manual_seed(2)
    return prepared(module)


def with_holes(episodes: Any) -> Any:
    """The same episodes with the second step of each row off the mask, as that of a tool."""
    mask = episodes.mask.clone()
    mask[:, 1] = False
    return episodes.evolve(mask=mask)


def taken(module: PPOModule, plan: UpdatePlan, target: Target, *, num_groups: int = 1) -> Any:
    chosen = target.loss(module, plan)
    size = PassSize(chosen.max_tokens, field="target.max_tokens")
    return take_gradients(module, chosen, num_groups=num_groups, size=size)


@pytest.mark.parametrize("holes", [False, True], ids=["full", "holes"])
@pytest.mark.parametrize(("max_tokens", "num_groups"), [(16384, 1), (60, 1), (60, 3)])
def test_the_return_of_the_buffer_is_the_gradient_of_minus_the_mean_of_advantage_times_log_prob(
    holes: bool, max_tokens: int, num_groups: int, module: PPOModule, episodes: Episodes
) -> None:
    episodes = with_holes(episodes) if holes else episodes
    plan = UpdatePlan(episodes=episodes)
    dropped = torch.arange(len(episodes)) == 5
    plan.drop(dropped, reason="another")
    found = taken(module, plan, ReturnOfBuffer(max_tokens=max_tokens), num_groups=num_groups).mean
    mask = episodes.mask & ~dropped[:, None]
    log_probs = module.score(episodes).log_probs  # type: ignore[arg-type]
    total = torch.where(mask, log_probs * episodes.advantages, 0.0).sum()
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(-total / mask.sum(), list(parameters.values()), allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
    for name, gradient in zip(parameters, expected, strict=True):
        plain = torch.zeros_like(parameters[name]) if gradient is None else gradient
        torch.testing.assert_close(found[name], plain, rtol=0, atol=ROUNDING * largest)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_a_batch_that_does_not_fit_in_memory_is_halved_and_the_gradient_stays(
    num_groups: int, module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch, memory_error: Exception
) -> None:
    plan = UpdatePlan(episodes=episodes)
    whole = taken(module, plan, ReturnOfBuffer(), num_groups=num_groups).mean
    honest, limit, made = module.score, 2, []

    def tight(part: Any, **wanted: Any) -> Any:
        if len(part) > limit:
            raise memory_error
        made.append(len(part))
        return honest(part, **wanted)

    monkeypatch.setattr(module, "score", tight)
    with pytest.warns(UserWarning, match="a batch does not fit in the device's memory, halving it"):
        found = taken(module, plan, ReturnOfBuffer(), num_groups=num_groups).mean
    assert sum(made) == len(episodes), "what fitted is not made again"
    largest = max(float(block.abs().max()) for block in whole.values())
    for name, block in whole.items():
        torch.testing.assert_close(found[name], block, rtol=0, atol=ROUNDING * largest)
    limit = 0
    with pytest.raises(UserError, match="a batch of 1 row does not fit"), pytest.warns(UserWarning, match="halving"):
        taken(module, plan, ReturnOfBuffer())


@pytest.mark.parametrize("num_groups", [1, 2])
def test_demonstrations_are_cut_by_tokens_and_the_gradient_stays(
    num_groups: int, module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan = tiny_data(), UpdatePlan(episodes=episodes)
    data.setup()
    batches = data.influence_dataloader()
    whole = taken(module, plan, Demonstrations(batches=batches), num_groups=num_groups)
    honest, sizes = module.validation_loss, []

    def counted(batch: Any) -> Any:
        costs = module.demonstration_costs(batch)
        sizes.append(len(costs) * int(costs.max()))
        return honest(batch)

    monkeypatch.setattr(module, "validation_loss", counted)
    found = taken(module, plan, Demonstrations(batches=batches, max_tokens=40), num_groups=num_groups)
    assert max(sizes) <= 40, "no pass has more tokens"
    assert len(sizes) > num_groups
    for one, other in zip([whole.mean, *whole.groups], [found.mean, *found.groups], strict=True):
        largest = max(float(block.abs().max()) for block in one.values())
        for name, block in one.items():
            torch.testing.assert_close(other[name], block, rtol=0, atol=ROUNDING * largest)
    with pytest.raises(UserError, match=r"target.max_tokens: 0 is out of range"):
        Demonstrations(max_tokens=0)


def test_later_gradients_begin_with_passes_that_fitted(
    module: PPOModule, episodes: Episodes, monkeypatch: pytest.MonkeyPatch, memory_error: Exception
) -> None:
    data, plan = tiny_data(), UpdatePlan(episodes=episodes)
    data.setup()
    target = Demonstrations(batches=data.influence_dataloader())
    honest, made = module.validation_loss, []

    def tight(batch: Any) -> Any:
        made.append(len(batch["prompts"]))
        if made[-1] > 3:
            raise memory_error
        return honest(batch)

    monkeypatch.setattr(module, "validation_loss", tight)
    cache = TargetGradientCache(ScoringSettings(health_every_n_iterations=0))
    with pytest.warns(UserWarning, match="halving"):
        cache.take(module, lambda: target.loss(module, plan), iteration=0)
    assert made[0] > 3
    resumed = TargetGradientCache(cache.settings)
    resumed.load_state_dict(cache.state_dict())
    for later in (cache, resumed):
        made.clear()
        later.take(module, lambda: target.loss(module, plan), iteration=1)
        assert max(made) <= 3, "no pass fails again"


def test_a_buffer_that_is_no_record_is_refused(module: PPOModule) -> None:
    plan = SimpleNamespace(episodes={"x": torch.ones(2)})
    with pytest.raises(UserError, match=r"InfluenceFilter.target: ReturnOfBuffer needs the method score"):
        ReturnOfBuffer().loss(module, plan)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"target.max_tokens: 0 is out of range"):
        ReturnOfBuffer(max_tokens=0)


def test_demonstrations_come_from_the_data_module_or_from_the_user(module: PPOModule, episodes: Episodes) -> None:
    plan, data = UpdatePlan(episodes=episodes), tiny_data()
    data.setup()
    found = Demonstrations().loss(module, plan, trainer=SimpleNamespace(datamodule=data))
    assert len(found.batches) == len(list(data.influence_dataloader()))
    given = Demonstrations(batches=[1, 2], validation_loss=lambda module, batch: torch.tensor(3.0))
    loss, batches, *_ = given.loss(None, plan)
    assert batches == [1, 2]
    assert float(loss(None, 1)) == 3
    with pytest.raises(UserError, match="null, and a run without a data module has no influence_dataloader"):
        Demonstrations().loss(module, plan)
    with pytest.raises(UserError, match="validation_loss: null, and Linear has no method validation_loss"):
        Demonstrations(batches=[1]).loss(torch.nn.Linear(1, 1), plan)


def test_demonstrations_without_a_batch_are_named(module: PPOModule, episodes: Episodes) -> None:
    plan = UpdatePlan(episodes=episodes)
    with pytest.raises(UserError, match=r"InfluenceFilter.demonstrations: it has no batch; expected at least one"):
        InfluenceFilter(demonstrations=[]).on_rollout_end(None, module, plan)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(influence_dataloader=list))
    with pytest.raises(UserError, match=r"SimpleNamespace.influence_dataloader\(\): it has no batch"):
        InfluenceFilter().on_rollout_end(trainer, module, plan)


def test_a_target_that_returns_a_plain_tensor_is_named(module: PPOModule, episodes: Episodes) -> None:
    class Plain(Target):
        def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> Any:
            return torch.tensor(1.0)

    with pytest.raises(UserError, match=r"Plain.loss: returned a Tensor; expected TargetLoss\(loss, batches\)"):
        InfluenceFilter(target=Plain()).on_rollout_end(None, module, UpdatePlan(episodes=episodes))


def test_micro_batches_of_one_optimizer_step_share_a_gradient(module: PPOModule, episodes: Episodes) -> None:
    cache = TargetGradientCache(ScoringSettings(health_every_n_iterations=0))
    plan, calls = UpdatePlan(episodes=episodes), []

    def target() -> Any:
        calls.append(1)
        return ReturnOfBuffer().loss(module, plan)

    first, again = (cache.take(module, target, iteration=0, part=part) for part in (0, 1))
    assert again is first
    cache.take(module, target, iteration=1, part=0)
    assert len(calls) == 2


def test_a_target_of_ones_own_returns_a_loss_and_batches(module: PPOModule, episodes: Episodes) -> None:
    class LikeTheFirst(Target):
        def loss(self, module: Any, plan: UpdatePlan, *, trainer: Any = None) -> TargetLoss:
            first = plan.episodes.select([0])
            return TargetLoss(lambda module, rows: -module.score(rows).log_probs[rows.mask].mean(), [first])

    plan = UpdatePlan(episodes=episodes)
    InfluenceFilter(target=LikeTheFirst(), monitor_only=True).on_rollout_end(None, module, plan)
    scores = plan.history[0].scores
    assert scores is not None
    # the first row's loss is its mean advantage times that target, so its score has the sign of its advantage
    advantage = float(episodes.advantages[0].sum())
    assert float(scores[0]) * advantage > 0
