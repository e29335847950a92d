"""Before each optimizer step, a callback may change what its rows weigh; without a change nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import prepared, same, tiny_loop, tiny_module, trainable

from ippo_lightning.engine import run_update
from ippo_lightning.engine.minibatch_plans import minibatch_hook
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import UpdatePlan

FLOAT32_ROUNDING = 2e-5  # of parameters after one Adam step of 1e-3, whose direction amplifies rounding


def updated(folder: Path, *, hook: Any = None, drops: Any = None, weights: Any = None, **update: Any) -> PPOModule:
    """Run one update from one and the same state and rollout; return the module after it."""
    module = tiny_module(update={"minibatch_size": 16, "micro_batch_size": 16, **update})
    tiny_loop(folder / "run", module, overwrite=True).set_up()
    torch.manual_seed(0)
    plan = UpdatePlan(episodes=prepared(module))
    if weights is not None:
        plan.scale(weights, reason="test")
    if drops is not None:
        plan.drop(drops(plan.episodes), reason="test")
    torch.manual_seed(1)
    module.outcome = run_update(module, plan, module.update_settings, on_minibatch=hook)
    return module


def odd(episodes: Any) -> torch.Tensor:
    mask: torch.Tensor = episodes.group % 2 == 1
    return mask


@pytest.mark.parametrize("changes", [{}, {"denominator": "all"}, {"loss_reduction": "token_mean"}])
def test_rows_dropped_before_the_only_step_are_rows_dropped_before_the_update(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    early = updated(tmp_path, drops=odd, **changes)
    late = updated(tmp_path, hook=lambda plan: plan.drop(odd(plan.episodes), reason="test"), **changes)
    assert (
        same(trainable(early), trainable(late))
        or max(
            float((one - other).abs().max())
            for one, other in zip(trainable(early).values(), trainable(late).values(), strict=True)
        )
        < FLOAT32_ROUNDING
    )
    assert not same(trainable(late), trainable(updated(tmp_path, **changes)))
    assert early.outcome.kept_fraction == late.outcome.kept_fraction == 0.5


def test_a_hook_that_changes_nothing_leaves_all_bits_as_they_are(tmp_path: Path) -> None:
    weights, seen = torch.linspace(0.5, 1.5, 16), []
    changes: dict[str, Any] = {"weights": weights, "minibatch_size": 6, "num_epochs": 2}
    plain = updated(tmp_path, **changes)
    hooked = updated(tmp_path, hook=lambda plan: seen.append(plan.weights), **changes)
    assert same(trainable(plain), trainable(hooked))
    assert [len(each) for each in seen] == [6, 5, 5] * 2, "one call per optimizer step"
    assert hooked.outcome.kept_fraction == plain.outcome.kept_fraction == 1
    torch.testing.assert_close(torch.cat(seen[:3]).sort().values, weights, rtol=0, atol=0)


def test_a_step_whose_rows_are_all_dropped_is_not_taken(tmp_path: Path) -> None:
    calls: list[int] = []

    def hook(plan: UpdatePlan) -> None:
        calls.append(len(plan.weights))
        plan.drop(torch.full((len(plan.weights),), len(calls) != 2), reason="test")

    found = updated(tmp_path, hook=hook, minibatch_size=8, num_epochs=2)
    assert len(calls) == 4
    assert (found.outcome.optimizer_steps, found.outcome.kept_fraction) == (1, 0.25)
    calls[:] = [0, 0]
    nothing = updated(tmp_path, hook=hook, minibatch_size=8, num_epochs=2)
    assert (nothing.outcome.optimizer_steps, nothing.outcome.kept_fraction) == (0, 0)
    fresh = tiny_module()
    assert same(trainable(nothing), trainable(fresh))


def test_the_kept_fraction_is_the_mean_over_epochs_of_all_sampled_rows(tmp_path: Path) -> None:
    calls: list[int] = []

    def hook(plan: UpdatePlan) -> None:
        calls.append(len(plan.weights))
        plan.drop(torch.arange(len(plan.weights)) < len(calls), reason="test")  # 1 row, then 2, then 3

    found = updated(tmp_path, hook=hook, drops=odd, num_epochs=3)
    assert calls == [8, 8, 8]
    assert found.outcome.kept_fraction == pytest.approx((7 + 6 + 5) / (3 * 16))


def test_the_critic_learns_from_dropped_rows_if_it_is_told_to(tmp_path: Path) -> None:
    def hook(plan: UpdatePlan) -> None:
        plan.drop(torch.ones(len(plan.weights), dtype=torch.bool), reason="test")

    found = updated(tmp_path, hook=hook, train_value_on_dropped=True)
    assert found.outcome.optimizer_steps == 1
    assert found.outcome.kept_fraction == 0, "rows of which only the value loss counts"
    assert found.outcome.metrics["update/policy_loss"] == 0
    assert found.outcome.metrics["update/value_loss"] > 0


def test_only_callbacks_that_want_to_decide_about_minibatches_are_called() -> None:
    class Wants:
        changes_minibatches = True

        def on_minibatch_start(self, trainer: Any, module: Any, plan: Any) -> None:
            plan.append((trainer, module))

    class Rests(Wants):
        changes_minibatches = False

    assert minibatch_hook([Rests(), object()], "trainer", "module") is None
    hook, called = minibatch_hook([Rests(), Wants()], "trainer", "module"), []  # type: ignore[var-annotated]
    assert hook is not None
    hook(called)  # type: ignore[arg-type]
    assert called == [("trainer", "module")]
