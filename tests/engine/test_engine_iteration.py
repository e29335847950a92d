"""An iteration leaves responses that were cut out of the loss, if it is told to, and keeps them in the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from critic_free import critic_free_module
from training_parts import prepared, same, tiny_loop, trainable

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.engine.update import run_update
from ippo_lightning.records import UpdatePlan


def test_cut_responses_are_dropped_by_name_and_count_in_the_baseline(tmp_path: Path) -> None:
    module = critic_free_module("dapo")
    tiny_loop(tmp_path / "run", module, max_iterations=1).fit()
    stats = module.last_stats
    assert stats is not None
    cut = stats.episodes.truncated
    assert 0 < int(cut.sum()) < len(cut), "the case has both"
    assert [change.reason for change in stats.plan.history] == ["truncated"]
    assert torch.equal(stats.plan.keep, ~cut)
    assert stats.metrics["update/kept_fraction"] == pytest.approx(float((~cut).float().mean()))
    sums = torch.zeros(8).index_add(0, stats.episodes.group, stats.episodes.advantages[:, 0])
    assert float(sums.abs().max()) < 1e-5, "advantages of a group sum to zero with its cut responses"


@pytest.mark.parametrize("reduction", ["episode_mean", "rollout_token_mean", "fixed_length"])
def test_with_the_denominator_of_all_rows_cut_responses_count_as_zero(reduction: str, tmp_path: Path) -> None:
    """As a mask of zeros would: the mean over responses is one over all of them."""

    def trained(name: str, **update: Any) -> Any:
        settings = {"loss_reduction": reduction, "minibatch_size": 16, "mask_truncated": False, "denominator": "all"}
        module = critic_free_module("dapo", update={**settings, "max_grad_norm": None, **update})
        tiny_loop(tmp_path / name, module).set_up()
        torch.manual_seed(0)
        plan = UpdatePlan(episodes=prepared(module))
        if name == "dropped":
            plan.drop(plan.episodes.truncated, reason="truncated")
        else:
            cut = plan.episodes.truncated[:, None]
            plan = UpdatePlan(episodes=plan.episodes.evolve(mask=plan.episodes.mask & ~cut))
        return module, run_update(module, plan, module.update_settings)

    dropped, masked = trained("dropped"), trained("masked")
    rows = float(masked[1].metrics["update/policy_loss"])
    scale = 1.0
    if reduction == "rollout_token_mean":  # whose tokens are those that count, and then fewer rows shrink the step
        scale = dropped[1].kept_fraction
    assert dropped[1].metrics["update/policy_loss"] == pytest.approx(rows * scale, rel=1e-4)


def test_where_every_response_is_cut_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = critic_free_module("dapo")
    honest = module.rollout

    def all_cut(plan: Any) -> Any:
        episodes = honest(plan)
        return episodes.evolve(truncated=torch.ones_like(episodes.truncated))

    monkeypatch.setattr(module, "rollout", all_cut)
    before = trainable(module)
    tiny_loop(tmp_path / "run", module, callbacks=[InfluenceFilter()], max_iterations=1).fit()
    stats = module.last_stats
    assert stats is not None
    assert stats.optimizer_steps == 0
    assert same(before, trainable(module))
