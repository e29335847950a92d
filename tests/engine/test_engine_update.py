"""The update: what a plan keeps trains, in any cut of micro-batches, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from training_parts import prepared, same, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.algorithms import GAE, ClippedLoss, ValueLoss
from ippo_lightning.engine import UpdateSettings, run_update
from ippo_lightning.errors import UserError
from ippo_lightning.maths import LossReduction
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import UpdatePlan

FLOAT32_ROUNDING = (
    2e-5  # of parameters after one Adam step of 1e-3, whose direction amplifies rounding of small gradients
)


def updated(
    tmp_path: Path, *, weights: torch.Tensor | None = None, update: dict[str, Any] | None = None, **changes: Any
) -> PPOModule:
    """Run one update from one and the same state and rollout; return the module after it."""
    module = tiny_module(update=update, **changes)
    loop = tiny_loop(tmp_path / "run", module, overwrite=True)
    loop.set_up()
    torch.manual_seed(0)
    plan = UpdatePlan(episodes=prepared(module))
    if weights is not None:
        plan.scale(weights, reason="test")
    torch.manual_seed(1)
    module.outcome = run_update(module, plan, module.update_settings)
    return module


def largest_difference(first: PPOModule, second: PPOModule) -> float:
    return max(
        float((a - b).abs().max()) for a, b in zip(trainable(first).values(), trainable(second).values(), strict=True)
    )


@pytest.mark.parametrize("reduction", get_args(LossReduction))
def test_micro_batches_add_up_to_the_minibatch(reduction: str, tmp_path: Path) -> None:
    weights = torch.linspace(0.2, 1.8, 16)
    one = updated(tmp_path, weights=weights, update={"micro_batch_size": 1, "loss_reduction": reduction})
    whole = updated(tmp_path, weights=weights, update={"micro_batch_size": 8, "loss_reduction": reduction})
    assert largest_difference(one, whole) < FLOAT32_ROUNDING


def test_a_minibatch_that_does_not_fit_in_memory_starts_again_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_error: Exception
) -> None:
    whole = updated(tmp_path, update={"minibatch_size": 8, "micro_batch_size": 8})
    honest, limit = PPOModule.backward_loss, 2

    def tight(module: PPOModule, loss: torch.Tensor) -> None:
        honest(module, loss)  # gradients of a backward that fails are already there
        if module.rows_of_pass > limit:
            raise memory_error

    def counted(module: PPOModule, minibatch: Any) -> Any:
        module.rows_of_pass = len(minibatch.episodes)
        return honest_loss(module, minibatch)

    honest_loss = PPOModule.minibatch_loss
    monkeypatch.setattr(PPOModule, "minibatch_loss", counted)
    monkeypatch.setattr(PPOModule, "backward_loss", tight)
    with pytest.warns(UserWarning, match=r"update\.max_tokens: the device's memory is too small, continuing with"):
        halved = updated(tmp_path, update={"minibatch_size": 8, "micro_batch_size": 8})
    assert largest_difference(halved, whole) < FLOAT32_ROUNDING
    resumed = tiny_module()
    resumed.load_progress_state(halved.progress_state())
    assert resumed.pass_size.tokens == halved.pass_size.tokens < 16384
    limit = 0
    with (
        pytest.raises(UserError, match=r"update\.max_tokens: one episode of \d+ tokens does not fit"),
        pytest.warns(UserWarning, match="continuing with"),
    ):
        updated(tmp_path, update={"minibatch_size": 8, "micro_batch_size": 8})


def test_micro_batches_are_cut_by_tokens_and_rows_stay_an_upper_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = updated(tmp_path, update={"minibatch_size": 16, "micro_batch_size": 8})
    honest, sizes = PPOModule.minibatch_loss, []

    def counted(module: PPOModule, minibatch: Any) -> Any:
        episodes = minibatch.episodes
        sizes.append((len(episodes), episodes.prompt_ids.shape[1] + episodes.response_ids.shape[1]))
        return honest(module, minibatch)

    monkeypatch.setattr(PPOModule, "minibatch_loss", counted)
    small = updated(tmp_path, update={"minibatch_size": 16, "micro_batch_size": 8, "max_tokens": 50})
    assert max(rows * width for rows, width in sizes) <= 50
    assert largest_difference(small, whole) < FLOAT32_ROUNDING
    sizes.clear()
    updated(tmp_path, update={"minibatch_size": 16, "micro_batch_size": 2})
    assert max(rows for rows, _ in sizes) == 2
    with pytest.raises(UserError, match=r"update\.max_tokens: 0 is out of range"):
        UpdateSettings(max_tokens=0)


def test_the_first_minibatch_finds_the_policy_that_sampled(tmp_path: Path) -> None:
    module = updated(tmp_path, update={"minibatch_size": 16, "micro_batch_size": 3})
    assert abs(module.outcome.metrics["update/approx_kl"]) < 1e-9
    assert abs(module.outcome.metrics["update/ratio_mean"] - 1) < 1e-5
    assert module.outcome.metrics["update/clip_fraction"] == 0


def test_dropout_in_the_model_leaves_the_ratio_at_one() -> None:
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    module = tiny_module(
        policy=tiny_policy(config={**config, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5})
    )
    episodes = prepared(module)
    tokens = (episodes.prompt_ids, episodes.prompt_mask, episodes.response_ids, episodes.response_mask)
    assert module.training
    torch.testing.assert_close(module.policy(*tokens).log_probs, episodes.log_probs, rtol=0, atol=1e-5)


def test_dropped_episodes_do_not_train(tmp_path: Path) -> None:
    keep = torch.zeros(16)
    keep[:8] = 1
    filtered = updated(tmp_path, weights=keep, update={"minibatch_size": 16})
    module = tiny_module(update={"minibatch_size": 16})
    tiny_loop(tmp_path / "run", module, overwrite=True).set_up()
    torch.manual_seed(0)
    plan = UpdatePlan(episodes=prepared(module).select(range(8)))
    run_update(module, plan, module.update_settings)
    assert largest_difference(filtered, module) < FLOAT32_ROUNDING


def test_nothing_kept_takes_no_step(tmp_path: Path) -> None:
    module = updated(tmp_path, weights=torch.zeros(16))
    assert module.outcome.optimizer_steps == 0
    assert module.outcome.kept_fraction == 0
    assert same(trainable(module), trainable(tiny_module()))


def test_one_episode_left_gives_one_finite_step(tmp_path: Path) -> None:
    weights = torch.zeros(16)
    weights[3] = 1
    module = updated(tmp_path, weights=weights)
    assert module.outcome.optimizer_steps == 1
    assert all(torch.isfinite(value).all() for value in trainable(module).values())
    assert not same(trainable(module), trainable(tiny_module()))


@pytest.mark.parametrize(
    ("kept", "rule", "steps"),
    [(6, "fewer", 2), (6, "same", 4), (3, "same", 3), (0, "same", 0), (16, "same", 4)],
    ids=["fewer", "same", "never more than episodes", "none for nothing", "nothing dropped"],
)
def test_filtering_saves_steps_or_makes_them_smaller(kept: int, rule: str, steps: int, tmp_path: Path) -> None:
    weights = (torch.arange(16) < kept).float()
    module = updated(tmp_path, weights=weights, update={"minibatch_size": 4, "steps_after_filtering": rule})
    assert module.outcome.optimizer_steps == steps


def test_weights_multiply_the_policy_loss_and_leave_the_critics(tmp_path: Path) -> None:
    heavy = torch.full((16,), 3.0)
    plain, weighted = (updated(tmp_path, weights=weights, update={"minibatch_size": 16}) for weights in (None, heavy))
    assert weighted.outcome.metrics["update/policy_loss"] == pytest.approx(
        3 * plain.outcome.metrics["update/policy_loss"], rel=1e-4, abs=1e-6
    )
    assert weighted.outcome.metrics["update/value_loss"] == pytest.approx(plain.outcome.metrics["update/value_loss"])


def test_dividing_by_all_shrinks_the_loss_by_the_kept_fraction(tmp_path: Path) -> None:
    weights = torch.zeros(16)
    weights[:4] = 1
    losses = [
        updated(tmp_path, weights=weights, update={"denominator": denominator}).outcome.metrics["update/policy_loss"]
        for denominator in ("kept", "all")
    ]
    assert losses[1] == pytest.approx(losses[0] / 4, rel=1e-4)


def test_the_critic_may_learn_from_what_the_policy_drops(tmp_path: Path) -> None:
    module = updated(tmp_path, weights=torch.zeros(16), update={"train_value_on_dropped": True})
    assert module.outcome.optimizer_steps == 2
    assert module.outcome.metrics["update/policy_loss"] == 0
    assert module.outcome.metrics["update/value_loss"] > 0


CHANGES: dict[str, dict[str, Any]] = {
    "num_epochs": {"update": {"num_epochs": 2}},
    "minibatch_size": {"update": {"minibatch_size": 4}},
    "max_grad_norm": {"update": {"max_grad_norm": 1e-4}},
    "loss_reduction": {"update": {"loss_reduction": "token_mean"}},
    "loss_reduction of the rollout": {"update": {"loss_reduction": "rollout_token_mean"}},
    "fixed loss_reduction": {"update": {"loss_reduction": "fixed_length"}},
    "low": {"loss": ClippedLoss(low=1e-4, high=0.2)},
    "high": {"loss": ClippedLoss(low=0.2, high=1e-4)},
    "value clip_range": {"value_loss": ValueLoss(clip_range=1e-4)},
    "value coef": {"value_loss": ValueLoss(coef=1.0)},
    "entropy_coef": {"entropy_coef": 0.1},
    "missing_eos_penalty": {"missing_eos_penalty": 1.0},
    "gamma": {"advantages": GAE(gamma=0.5)},
    "gae_lambda": {"advantages": GAE(gae_lambda=0.1)},
    "bootstrap_truncated": {"advantages": GAE(bootstrap_truncated=True)},
    "whiten": {"advantages": GAE(whiten=False)},
}
MOVED = {"low", "high", "value clip_range"}
"""What clips needs a policy that has moved: two epochs, and a critic that is not clipped before."""


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_of_the_update_changes_the_result(name: str, tmp_path: Path) -> None:
    base: dict[str, Any] = {}
    if name in MOVED:
        base = {"update": {"num_epochs": 2}, "value_loss": ValueLoss(clip_range=10.0)}
    first, second = (updated(tmp_path, **{**base, **change}) for change in ({}, CHANGES[name]))
    assert not same(trainable(first), trainable(second))


def test_settings_that_make_no_sense_are_refused() -> None:
    for name, value in {"num_epochs": 0, "minibatch_size": 1.5, "max_grad_norm": 0.0}.items():
        with pytest.raises(ValueError, match=rf"update\.{name}: {value}"):
            UpdateSettings(**{name: value})


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    module = tiny_module()
    tiny_loop(tmp_path / "run", module).set_up()
    plan = UpdatePlan(episodes=prepared(module))
    plan = UpdatePlan(episodes=plan.episodes.evolve(advantages=torch.full_like(plan.episodes.advantages, torch.inf)))
    before = trainable(module)
    with pytest.raises(FloatingPointError, match=r"loss of episode \d+"):
        run_update(module, plan, module.update_settings)
    assert same(before, trainable(module))
