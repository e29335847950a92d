"""The influence filter: exact scores, the rule it was told, and no trace but the weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_parts import RecordedReward, prepared, same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError
from ippo_lightning.influence import influence_scores, target_gradient
from ippo_lightning.modules import OptimizerSettings, PPOModule
from ippo_lightning.policies import SamplingSettings, encode_demonstrations
from ippo_lightning.records import Episodes, TextEpisodes, UpdatePlan
from ippo_lightning.selection import Influence, ReturnOfBuffer


def trainer_with(data: Any = None) -> SimpleNamespace:
    data = data or tiny_data()
    data.setup()
    return SimpleNamespace(datamodule=data, should_stop=False)


def filtered(
    module: PPOModule, episodes: Episodes, *, iteration: int = 0, **settings: Any
) -> tuple[UpdatePlan, SimpleNamespace]:
    callback, plan, trainer = InfluenceFilter(**settings), UpdatePlan(episodes=episodes), trainer_with()
    callback.iteration = iteration
    callback.on_rollout_end(trainer, module, plan)
    return plan, trainer


@pytest.fixture
def module() -> PPOModule:
    return tiny_module()


@pytest.fixture
def episodes(module: PPOModule) -> Episodes:
    torch.manual_seed(2)
    return prepared(module)


def test_scores_are_the_inner_products_of_plain_gradients(module: PPOModule, episodes: Episodes) -> None:
    plan, trainer = filtered(module, episodes, scoring=ScoringSettings(max_tokens=100))
    batches = list(trainer.datamodule.influence_dataloader())
    weights = [len(batch["prompts"]) for batch in batches]
    direction = target_gradient(
        module, lambda model, batch: model.validation_loss(batch), batches, weights=[float(w) for w in weights]
    )
    one_by_one = influence_scores(
        module, lambda model, part: model.episode_losses(part), [episodes], direction, method="per_episode"
    )
    torch.testing.assert_close(plan.history[0].scores, one_by_one, rtol=1e-4, atol=1e-6)


def test_scores_at_or_below_zero_are_dropped_and_the_rest_weighs_in_proportion(
    module: PPOModule, episodes: Episodes
) -> None:
    plan, _ = filtered(module, episodes)
    scores = plan.history[0].scores
    assert 0 < int(plan.keep.sum()) < len(episodes)
    assert torch.equal(plan.keep, scores > 0)
    torch.testing.assert_close(plan.weights, scores.clamp(min=0) / scores[scores > 0].mean(), rtol=1e-5, atol=1e-7)
    assert plan.metrics["influence/scored_kept_fraction"] == pytest.approx(float(plan.keep.float().mean()))
    assert plan.metrics["influence/gradient_norm"] > 0
    assert plan.metrics["time/influence_seconds"] > 0
    assert 1 <= plan.metrics["influence/effective_sample_size"] <= int(plan.keep.sum())


def test_power_zero_filters_without_weighting(module: PPOModule, episodes: Episodes) -> None:
    plan, _ = filtered(module, episodes, power=0.0)
    assert set(plan.weights.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 5e-3},
        {"power": 0.5},
        {"max_weight": 1.2},
        {"min_keep": 15},
        {"rule": "random"},
        {"rule": "reward"},
    ],
    ids=str,
)
def test_every_option_changes_the_weights(settings: dict[str, Any], module: PPOModule, episodes: Episodes) -> None:
    plain, changed = filtered(module, episodes)[0], filtered(module, episodes, **settings)[0]
    assert not torch.equal(plain.weights, changed.weights)


def test_a_cap_holds_and_keeps_the_mean(module: PPOModule, episodes: Episodes) -> None:
    plan, _ = filtered(module, episodes, max_weight=1.5)
    assert float(plan.weights.max()) <= 1.5 + 1e-6
    assert float(plan.weights[plan.keep].mean()) == pytest.approx(1.0, rel=1e-5)


def test_random_drops_as_many_and_others_each_iteration(module: PPOModule, episodes: Episodes) -> None:
    influence, _ = filtered(module, episodes)
    first, again, later = (filtered(module, episodes, rule="random", iteration=number)[0] for number in (0, 0, 1))
    assert int(first.keep.sum()) == int(influence.keep.sum())
    assert torch.equal(first.keep, again.keep)
    assert not torch.equal(first.keep, later.keep)


def test_the_controls_go_by_their_own_measure(module: PPOModule, episodes: Episodes) -> None:
    advantage, _ = filtered(module, episodes, rule="advantage_sign")
    means = episodes.advantages.sum(dim=1) / episodes.lengths
    assert torch.equal(advantage.keep, means > 0)
    reward, _ = filtered(module, episodes, rule="reward")
    assert torch.equal(reward.keep, episodes.outcome_rewards > episodes.outcome_rewards.mean())


def test_an_episode_that_is_a_demonstration_is_kept_if_it_was_good_and_dropped_if_bad(module: PPOModule) -> None:
    trainer = trainer_with()
    batch = trainer.datamodule.influence_dataloader()[0]
    encoded = encode_demonstrations(module.policy.tokenizer, batch["prompts"], batch["responses"], max_length=64)
    count, mask = len(encoded.response_ids), encoded.response_mask
    nothing = torch.zeros(mask.shape)
    log_probs = module.policy(*encoded).log_probs.detach()
    advantages = mask.float()
    advantages[::2] *= -1
    episodes = TextEpisodes(
        prompt_ids=encoded.prompt_ids,
        prompt_mask=encoded.prompt_mask,
        response_ids=encoded.response_ids,
        mask=mask,
        truncated=torch.zeros(count, dtype=torch.bool),
        group=torch.arange(count),
        log_probs=log_probs,
        ref_log_probs=nothing,
        values=nothing,
        outcome_rewards=torch.zeros(count),
        rewards=nothing,
        advantages=advantages,
        returns=nothing,
        prompts=tuple(batch["prompts"]),
        responses=tuple(batch["responses"]),
        examples=tuple(batch["examples"]),
    )
    plan, _ = filtered(module, episodes)
    assert torch.equal(plan.keep, torch.arange(count) % 2 == 1)


def test_what_happens_when_nothing_is_kept_is_the_users_choice(module: PPOModule, episodes: Episodes) -> None:
    skip, _ = filtered(module, episodes, threshold=1e9)
    assert float(skip.weights.sum()) == 0
    everything, _ = filtered(module, episodes, threshold=1e9, on_empty="keep_all")
    assert everything.weights.tolist() == [1.0] * len(episodes)
    _, trainer = filtered(module, episodes, threshold=1e9, on_empty="stop")
    assert trainer.should_stop


def test_warm_up_and_rhythm_decide_when_it_acts() -> None:
    callback = InfluenceFilter(warmup_iterations=2, every_n_iterations=3)
    assert [number for number in range(10) if callback.is_due(number)] == [2, 5, 8]


def test_scoring_leaves_no_trace(module: PPOModule, episodes: Episodes) -> None:
    before, random_state = trainable(module), torch.get_rng_state()
    filtered(module, episodes)
    assert same(before, trainable(module))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.training


def test_monitoring_is_plain_ppo_to_the_bit(tmp_path: Path) -> None:
    runs = []
    for name, callbacks in {"plain": [], "watched": [InfluenceFilter(monitor_only=True)]}.items():
        module = tiny_module()
        tiny_loop(tmp_path / name, module, callbacks=callbacks).fit()
        runs.append(trainable(module))
    assert same(*runs)


def test_a_module_or_data_without_what_it_needs_is_named(module: PPOModule, episodes: Episodes) -> None:
    plan = UpdatePlan(episodes=episodes)
    with pytest.raises(UserError, match="Linear has no method episode_losses"):
        InfluenceFilter().on_rollout_end(trainer_with(), torch.nn.Linear(1, 1), plan)
    with pytest.raises(UserError, match="influence_dataloader"):
        InfluenceFilter().on_rollout_end(SimpleNamespace(datamodule=None), module, plan)


@pytest.mark.parametrize(
    "settings",
    [{"rule": "magic"}, {"power": -1.0}, {"max_weight": 0.5}, {"min_keep": -1}, {"every_n_iterations": 0}],
    ids=str,
)
def test_a_wrong_option_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"InfluenceFilter.{next(iter(settings))}"):
        InfluenceFilter(**settings)


def test_rules_without_scores_need_no_demonstrations_and_no_losses_and_log_no_scores(episodes: Episodes) -> None:
    for rule in ("advantage_sign", "reward"):
        plan = UpdatePlan(episodes=episodes)
        InfluenceFilter(rule=rule).on_rollout_end(SimpleNamespace(datamodule=None), torch.nn.Linear(1, 1), plan)
        assert 0 < int(plan.keep.sum()) < len(episodes)
        assert plan.metrics.keys() == {
            "influence/scored_kept_fraction",
            "influence/effective_sample_size",
            "influence/max_weight",
        }
        assert plan.metrics["influence/scored_kept_fraction"] == float(plan.keep.float().mean())
        assert plan.metrics["influence/effective_sample_size"] == int(plan.keep.sum())


def test_what_another_callback_dropped_stays_dropped_and_does_not_count(module: PPOModule, episodes: Episodes) -> None:
    half = episodes.select(list(range(8)))
    alone, _ = filtered(module, half, threshold=-1e9)
    scores = alone.history[0].scores
    dropped = torch.arange(8) % 2 == 0
    plan = UpdatePlan(episodes=half)
    plan.drop(dropped, reason="another")
    InfluenceFilter(threshold=-1e9, power=1.0).on_rollout_end(trainer_with(), module, plan)
    assert torch.equal(plan.keep, ~dropped)
    assert float(plan.weights[plan.keep].mean()) == pytest.approx(1.0, rel=1e-5)
    assert [change.reason for change in plan.history] == ["another", "InfluenceFilter(influence)"] + (
        ["InfluenceFilter(influence)"] if plan.weights.unique().numel() > 2 else []
    )
    torch.testing.assert_close(plan.history[1].scores, scores)


def test_two_filters_stack(module: PPOModule, episodes: Episodes) -> None:
    first, _ = filtered(module, episodes, rule="reward")
    plan = UpdatePlan(episodes=episodes)
    for callback in (InfluenceFilter(rule="reward"), InfluenceFilter(power=0)):
        callback.on_rollout_end(trainer_with(), module, plan)
    by_score, _ = filtered(module, episodes, power=0.0)
    assert torch.equal(plan.keep, first.keep & by_score.keep)
    assert [change.reason for change in plan.history] == ["InfluenceFilter(reward)", "InfluenceFilter(influence)"]


def test_keeping_all_when_nothing_is_left_brings_nobody_elses_rows_back(module: PPOModule, episodes: Episodes) -> None:
    plan = UpdatePlan(episodes=episodes)
    dropped = torch.arange(len(episodes)) < 3
    plan.drop(dropped, reason="another")
    InfluenceFilter(threshold=1e9, on_empty="keep_all").on_rollout_end(trainer_with(), module, plan)
    assert torch.equal(plan.keep, ~dropped)


def test_monitoring_notes_the_scores_and_no_more(module: PPOModule, episodes: Episodes) -> None:
    plan, _ = filtered(module, episodes, monitor_only=True)
    assert bool(plan.keep.all())
    assert [change.kind for change in plan.history] == ["note"]


def test_a_rule_as_an_object_is_the_rule_by_its_short_name(module: PPOModule, episodes: Episodes) -> None:
    by_name, _ = filtered(module, episodes, power=0.5, threshold=1e-3)
    by_object, _ = filtered(module, episodes, rule=Influence(power=0.5, threshold=1e-3))
    assert torch.equal(by_name.weights, by_object.weights)


def test_the_return_of_the_buffer_needs_no_demonstrations(module: PPOModule, episodes: Episodes) -> None:
    plan = UpdatePlan(episodes=episodes)
    InfluenceFilter(target=ReturnOfBuffer()).on_rollout_end(SimpleNamespace(datamodule=None), module, plan)
    assert plan.weights.unique().numel() > 1


def test_what_belongs_to_the_default_target_is_refused_beside_another() -> None:
    with pytest.raises(UserError, match=r"InfluenceFilter.demonstrations: it is for the default target"):
        InfluenceFilter(target=ReturnOfBuffer(), demonstrations=[1])
    with pytest.raises(UserError, match=r"InfluenceFilter.drop_when: all needs a rule that reads scores; reward reads"):
        InfluenceFilter(rule="reward", drop_when="all")


def test_a_method_that_is_wrong_for_the_model_is_refused_before_the_first_iteration(module: PPOModule) -> None:
    module.register_module("compiled", torch.compile(torch.nn.Linear(1, 1)))
    callback = InfluenceFilter(scoring=ScoringSettings(method="forward"))
    with pytest.raises(UserError, match="method: 'forward'"):
        callback.on_fit_start(trainer_with(), module)
    # Without the losses that are scored, the module is not what is scored.
    InfluenceFilter(rule="reward", scoring=ScoringSettings(method="forward")).on_fit_start(None, module)


def test_scores_of_adam_steps_and_another_optimizer_are_refused_before_the_first_iteration(tmp_path: Path) -> None:
    reward = RecordedReward()
    module = tiny_module(optimizer=OptimizerSettings(kind="sgd"), reward=reward)
    callback = InfluenceFilter(scoring=ScoringSettings(adam_aware=True))
    with pytest.raises(UserError, match=r"adam_aware: true needs Adam's second moments, and optimizer: SGD keeps no"):
        tiny_loop(tmp_path, module, callbacks=[callback]).fit()
    assert reward.calls == [], "nothing was sampled for it"
    # A rule without scores scales nothing.
    control = InfluenceFilter(rule="reward", scoring=ScoringSettings(adam_aware=True))
    control.on_train_start(trainer_with(), module)


@pytest.mark.parametrize("settings", [{"target": ReturnOfBuffer()}, {"score_at": "minibatch", "rule": "reward"}])
def test_an_iteration_that_has_no_row_left_is_no_error(settings: dict[str, Any], tmp_path: Path) -> None:
    module = tiny_module(update={"mask_truncated": True}, sampling=SamplingSettings(num_responses=2, max_new_tokens=1))
    tiny_loop(tmp_path, module, callbacks=[InfluenceFilter(**settings)], max_iterations=1).fit()
    assert module.last_stats is not None
    assert (module.last_stats.kept_fraction, module.last_stats.optimizer_steps) == (0, 0)


def test_a_run_can_stop_where_other_callbacks_have_left_nothing(module: PPOModule, episodes: Episodes) -> None:
    plan, trainer = UpdatePlan(episodes=episodes), trainer_with()
    plan.drop(torch.ones(len(episodes), dtype=torch.bool), reason="another")
    InfluenceFilter(on_empty="stop", target=ReturnOfBuffer()).on_rollout_end(trainer, module, plan)
    assert trainer.should_stop
