"""Scores of each minibatch at the parameters of its step, and what does not go together with them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_episodes import make_episodes
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection import (
    AdvantageHeuristic,
    LeaveOneOutMean,
    MaxRewardVariance,
    RolloutTable,
    SelectionRule,
)

ROUNDING = 1e-4
"""float32 scores after a step, as a fraction of the largest."""


class Recorder(SelectionRule):
    """Keeps all rows, and notes their scores."""

    needs = frozenset({"scores"})

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def keep(self, table: RolloutTable) -> torch.Tensor:
        self.seen.append(table.scores.sort().values)
        return torch.ones_like(table.kept)


def run(folder: Path, *, update: dict[str, Any] | None = None, iterations: int = 1, **settings: Any) -> PPOModule:
    module = tiny_module(update={"minibatch_size": 16, "micro_batch_size": 16, **(update or {})})
    resume = settings.pop("resume", False)
    callbacks = [InfluenceFilter(**settings)]
    tiny_loop(folder, module, callbacks=callbacks, max_iterations=iterations, resume=resume).fit()
    return module


def test_the_second_epoch_is_scored_at_the_parameters_after_the_first(tmp_path: Path) -> None:
    each, once = Recorder(), Recorder()
    run(tmp_path / "each", update={"num_epochs": 2}, rule=each, score_at="minibatch")
    run(tmp_path / "once", update={"num_epochs": 2}, rule=once)
    assert (len(each.seen), len(once.seen)) == (2, 1)
    largest = float(once.seen[0].abs().max())
    torch.testing.assert_close(each.seen[0], once.seen[0], rtol=0, atol=ROUNDING * largest)
    # the same rollout, and the parameters after one epoch
    module = run(tmp_path / "one", update={"num_epochs": 1}, rule=Recorder())
    assert module.last_stats is not None
    after = Recorder()
    data = tiny_data()
    data.setup()
    trainer = SimpleNamespace(datamodule=data)
    InfluenceFilter(rule=after).on_rollout_end(trainer, module, UpdatePlan(episodes=module.last_stats.episodes))
    torch.testing.assert_close(each.seen[1], after.seen[0], rtol=0, atol=ROUNDING * largest)
    assert float((each.seen[1] - each.seen[0]).abs().max()) > 10 * ROUNDING * largest, "the step matters"


def test_a_minibatch_can_be_its_own_target_and_the_log_shows_the_mean_over_its_steps(tmp_path: Path) -> None:
    module = run(
        tmp_path / "run", update={"minibatch_size": 4}, score_at="minibatch", power=0.0, target=LeaveOneOutMean()
    )
    stats = module.last_stats
    assert stats is not None
    assert bool(stats.plan.keep.all()), "the rollout's plan keeps all rows"
    assert 0 < stats.kept_fraction < 1
    # one counts rows and the other minibatches, which have equal sizes here
    assert stats.metrics["influence/scored_kept_fraction"] == pytest.approx(stats.kept_fraction)
    assert stats.metrics["update/tokens_trained"] < float(stats.episodes.num_steps)
    assert stats.metrics["time/scoring_seconds"] > 0


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"update": {"minibatch_size": 5}, "score_at": "minibatch"}
    whole = run(tmp_path / "whole", iterations=2, **settings)
    run(tmp_path / "parts", iterations=1, **settings)
    assert same(trainable(whole), trainable(run(tmp_path / "parts", iterations=2, resume=True, **settings)))


@pytest.mark.parametrize(
    "settings", [{"warmup_iterations": 1}, {"update": {"critic_warmup_iterations": 1}}], ids=["filter", "critic"]
)
def test_iterations_that_are_not_due_are_plain(settings: dict[str, Any], tmp_path: Path) -> None:
    module = run(tmp_path / "run", score_at="minibatch", **settings)
    plain = run(tmp_path / "plain", **settings)
    assert same(trainable(module), trainable(plain))
    assert module.last_stats is not None
    assert "influence/scored_kept_fraction" not in module.last_stats.metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rule": MaxRewardVariance()},
            r"minibatch, and MaxRewardVariance reads groups, .*; use rollout_end",
        ),
        ({"whole_groups": "mean"}, r"minibatch, and whole_groups mean reads groups, .*; use rollout_end"),
        ({"baselines": "kept"}, r"and baselines: kept compares .* only at the end of a rollout; use rollout_end, or"),
        (
            {"rule": AdvantageHeuristic()},
            "minibatch, and AdvantageHeuristic reads the rows .* in their order; use roll",
        ),
        ({"scoring": ScoringSettings(method="finite_difference")}, "and finite_difference reads losses at the param"),
        ({"scoring": ScoringSettings(refresh_every_n_iterations=2)}, "refresh_every_n_iterations is 2; set it to 1"),
        ({"score_at": "token"}, "score_at: 'token' is unknown; expected"),
    ],
)
def test_what_makes_no_sense_for_a_minibatch_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InfluenceFilter(**{"score_at": "minibatch", **changes})


def test_a_long_warm_up_is_not_taken_for_a_filter_that_never_acts() -> None:
    callback = InfluenceFilter(score_at="minibatch", rule="reward", warmup_iterations=200)
    module = torch.nn.Linear(1, 1)
    for number in range(100):
        callback.on_rollout_end(None, module, UpdatePlan(episodes=make_episodes([2, 3], [1, 2])))
        callback.on_train_batch_end(None, module, None, None, number)


def test_a_foreign_buffer_has_no_minibatches_to_score() -> None:
    callback = InfluenceFilter(score_at="minibatch", rule="reward")
    with pytest.raises(UserError, match="minibatch needs a module whose update calls on_minibatch_start"):
        callback.apply(torch.nn.Linear(1, 1), {"rewards": torch.ones(2), "weights": torch.ones(2)})
