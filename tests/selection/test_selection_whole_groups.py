"""Groups of responses are kept or dropped as one, and baselines are those of all rows or of the kept ones."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from critic_free import critic_free_module
from rule_tables import factors, make_table
from training_parts import prepared, same, tiny_loop, tiny_module, trainable

from ippo_lightning.algorithms import GlobalBaseline, GroupBaseline
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import UpdatePlan
from ippo_lightning.selection import AboveMeanReward, Influence, Random, SelectionRule

# a group of one, one of two, and one of three rows that lie apart
GROUPS = [4, 0, 7, 4, 0, 4]
SCORES = [1.0, 3.0, -2.0, -4.0, 1.0, 2.0]  # sums by group: 4: -1, 0: 4, 7: -2


@pytest.mark.parametrize(
    ("rule", "how", "kept"),
    [
        (Influence(power=0), "mean", {0}),
        (Influence(power=0, threshold=-0.5), "mean", {0, 4}),  # the mean of group 4 is -1/3
        (Influence(power=0, threshold=-0.5), "sum", {0}),
        (Influence(power=0, threshold=-1.5), "sum", {0, 4}),
    ],
)
def test_a_group_is_kept_by_the_mean_or_the_sum_of_its_scores(rule: SelectionRule, how: str, kept: set[int]) -> None:
    found = factors(rule, make_table(scores=SCORES, groups=GROUPS), whole_groups=how)
    assert found == [float(group in kept) for group in GROUPS]


def test_weights_are_those_of_groups_and_have_mean_one_over_the_kept_rows() -> None:
    table = make_table(scores=[1.0, 3.0, 8.0, 2.0, -1.0], groups=[0, 0, 1, 0, 2])
    # group scores 2, 8 and -1; over the four kept rows, (3 * 2 + 8) / 4 = 3.5 has the weight 1
    expected = [2 / 3.5, 2 / 3.5, 8 / 3.5, 2 / 3.5, 0]
    assert factors(Influence(), table, whole_groups="mean") == pytest.approx(expected)
    assert max(factors(Influence(), table, whole_groups="mean", max_weight=1.5)) == pytest.approx(1.5)


def test_rows_that_are_out_already_stay_out_and_do_not_count_in_their_group() -> None:
    table = make_table(scores=[-9.0, 1.0, 1.0, -1.0], groups=[0, 0, 1, 1], kept=[False, True, True, True])
    assert factors(Influence(power=0), table, whole_groups="sum") == [0, 1, 0, 0]
    broken = make_table(scores=[0.0, -1.0, 1.0, 1.0], groups=[0, 0, 1, 1], force_drop=[False, False, True, False])
    assert factors(Influence(power=0), broken, whole_groups="sum") == [0, 0, 0, 1]


def test_min_keep_counts_groups_and_brings_back_the_best_one() -> None:
    table = make_table(rewards=[1.0, 1.0, 2.0, 2.0, 9.0, 9.0], groups=[0, 0, 1, 1, 2, 2])
    assert factors(AboveMeanReward(), table, whole_groups="mean", min_keep=2) == [0, 0, 1, 1, 1, 1]


def test_a_random_rule_draws_groups() -> None:
    groups = [0, 1, 2, 3] * 3
    found = torch.tensor(
        factors(Random(fraction=0.5), make_table(rewards=[0.0] * 12, groups=groups), whole_groups="sum")
    )
    assert {tuple(found[place::4].tolist()) for place in range(4)} == {(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)}
    assert found.sum() == 6


def planned(module: PPOModule, dropped: list[int], **settings: Any) -> UpdatePlan:
    """A plan whose rows were chosen by a reward above the mean, after another callback has dropped some."""
    plan = UpdatePlan(episodes=prepared(module, num_prompts=4))
    plan.drop(torch.tensor([row in dropped for row in range(len(plan.weights))]), reason="another")
    InfluenceFilter(rule="reward", **settings).on_rollout_end(None, module, plan)
    return plan


def grpo(**changes: Any) -> PPOModule:
    return critic_free_module("grpo", **changes)


def test_the_advantages_of_all_stay_bit_for_bit_unless_the_kept_are_asked_for() -> None:
    module = grpo()
    plan = planned(module, [])
    assert torch.equal(plan.episodes.advantages, module.compute_advantages(plan.episodes).advantages)


def test_kept_rows_are_compared_with_each_other_only() -> None:
    module = grpo()
    plan = planned(module, [1], baselines="kept")
    before = module.compute_advantages(plan.episodes).advantages
    rewards = plan.episodes.rewards.sum(dim=1).tolist()
    assert 1 < int(plan.keep.sum()) < len(rewards)
    for row, is_kept in enumerate(plan.keep.tolist()):
        found = plan.episodes.advantages[row]
        if not is_kept:
            assert torch.equal(found, before[row])
            continue
        mates = plan.keep & (plan.episodes.group == plan.episodes.group[row])
        others = [rewards[place] for place in mates.nonzero().flatten().tolist()]
        spread = statistics.stdev(others) if len(others) > 1 else 0.0
        expected = (rewards[row] - statistics.fmean(others)) / (spread + 1e-4)
        counted = found[plan.episodes.mask[row]]
        torch.testing.assert_close(counted, torch.full_like(counted, expected))
        assert found[~plan.episodes.mask[row]].eq(0).all()
    assert any(change.reason.startswith("baselines") for change in plan.history)


def test_a_whole_group_has_the_same_baseline_either_way() -> None:
    plans = []
    for baselines in ("all", "kept"):
        torch.manual_seed(0)
        plans.append(planned(grpo(), [], whole_groups="mean", baselines=baselines))
    assert 0 < int(plans[0].keep.sum()) < len(plans[0].weights)
    torch.testing.assert_close(plans[0].episodes.advantages, plans[1].episodes.advantages)
    groups = plans[0].episodes.group
    assert all(len(plans[0].keep[groups == group].unique()) == 1 for group in groups.unique())


@pytest.mark.parametrize("estimator", [GroupBaseline(scale="batch"), GlobalBaseline()], ids=["batch", "global"])
def test_a_rank_without_a_kept_row_still_takes_part(estimator: Any) -> None:
    module = grpo(advantages=estimator)
    episodes = prepared(module, num_prompts=2)
    assert len(module.compute_advantages(episodes.select([])).advantages) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"whole_groups": "mean"}, "InfluenceFilter.whole_groups: mean, and GAE compares no responses to one prompt"),
        ({"baselines": "kept"}, "InfluenceFilter.baselines: kept, and PPOModule has GAE, which needs a critic"),
    ],
    ids=["groups", "baselines"],
)
def test_an_algorithm_without_groups_is_refused_before_the_first_iteration(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    loop = tiny_loop(tmp_path / "run", tiny_module(), callbacks=[InfluenceFilter(**settings)])
    with pytest.raises(UserError, match=words) as raised:
        loop.fit()
    assert "\n" not in str(raised.value)
    assert loop.module.iteration == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"whole_groups": "median"}, "InfluenceFilter.whole_groups"),
        ({"baselines": "none"}, "InfluenceFilter.baselines"),
        ({"whole_groups": "sum", "drop_when": "all"}, "InfluenceFilter.drop_when: all decides row by row"),
    ],
)
def test_words_that_contradict_each_other_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        InfluenceFilter(**settings)


def test_a_run_of_whole_groups_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: str, iterations: int, **changes: Any) -> PPOModule:
        callbacks = [InfluenceFilter(whole_groups="sum", baselines="kept", min_keep=1)]
        tiny_loop(tmp_path / folder, module := grpo(), callbacks=callbacks, max_iterations=iterations, **changes).fit()
        return module

    whole = run("whole", 2)
    run("broken", 1)
    assert same(trainable(whole), trainable(run("broken", 2, resume=True)))
