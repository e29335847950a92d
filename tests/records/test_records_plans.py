"""Plans: changes stack, nonsense is refused, and nothing changes once the work has begun."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from small_episodes import make_episodes
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.records import Minibatch, RolloutPlan, UpdatePlan


def make_plan() -> UpdatePlan:
    return UpdatePlan(episodes=make_episodes([1, 2, 3], [3, 2, 1]))


def test_a_fresh_plan_keeps_every_episode_as_it_is() -> None:
    plan = make_plan()
    assert (plan.weights.tolist(), plan.keep.tolist(), plan.history) == ([1.0] * 3, [True] * 3, [])
    assert not plan.sealed


def test_changes_multiply_and_each_is_remembered() -> None:
    plan = make_plan()
    scores = torch.tensor([0.5, -1.0, 1.5])
    plan.drop(torch.tensor([False, True, False]), reason="first", scores=scores)
    plan.scale(torch.tensor([0.5, 3.0, 2.0], dtype=torch.float64), reason="second")
    plan.note(reason="third", scores=scores)
    assert plan.keep.tolist() == [True, False, True], "what was dropped stays dropped"
    assert plan.weights.tolist() == [0.5, 0.0, 2.0]
    assert plan.weights.dtype == torch.float32
    assert [(change.reason, change.kind, change.factors.tolist()) for change in plan.history] == [
        ("first", "drop", [1.0, 0.0, 1.0]),
        ("second", "scale", [0.5, 3.0, 2.0]),
        ("third", "note", [1.0, 1.0, 1.0]),
    ]
    assert plan.history[0].scores is scores
    assert plan.history[1].scores is None


def test_a_mask_of_numbers_is_no_mask() -> None:
    with pytest.raises(UserError, match=r"plan\.drop: mask of 'rule' has dtype torch.float32; expected bool"):
        make_plan().drop(torch.zeros(3), reason="rule")


def test_a_plan_is_not_tied_to_the_tensor_it_was_given() -> None:
    plan, weights = make_plan(), torch.ones(3, requires_grad=True)
    plan.scale(weights, reason="mine")
    with torch.no_grad():
        weights.zero_()
    assert plan.weights.tolist() == [1.0] * 3
    assert not plan.weights.requires_grad


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2), r"'rule' has shape \(2,\), expected \(3,\)"),
        (torch.ones(3, 1), r"'rule' has shape \(3, 1\), expected \(3,\)"),
        (torch.tensor([1.0, math.nan, 1.0]), r"'rule' contains NaN or infinity"),
        (torch.tensor([1.0, math.inf, 1.0]), r"'rule' contains NaN or infinity"),
        # finite in double precision, infinite in the plan's
        (torch.tensor([1.0, 1e300, 1.0], dtype=torch.float64), r"'rule' contains NaN or infinity"),
        (torch.tensor([1.0, -0.25, 1.0]), r"'rule' goes down to -0\.25; expected weights >= 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused_and_leave_the_plan_alone(weights: Tensor, message: str) -> None:
    plan = make_plan()
    with pytest.raises(UserError, match=r"plan\.scale: " + message):
        plan.scale(weights, reason="rule")
    assert (plan.weights.tolist(), plan.history) == ([1.0] * 3, [])


def test_a_sealed_plan_takes_no_more_weights() -> None:
    plan = make_plan()
    plan.sealed = True
    with pytest.raises(UserError, match=r"plan\.scale: 'late' came after the update had begun"):
        plan.scale(torch.zeros(3), reason="late")
    assert plan.weights.tolist() == [1.0] * 3


def test_advantages_are_replaced_in_the_plan_and_not_in_the_record() -> None:
    plan = make_plan()
    before, mine = plan.episodes, torch.full((3, 3), 2.0)
    plan.replace_advantages(mine, reason="another baseline")
    mine.zero_()
    assert plan.episodes.advantages.eq(2).all()
    assert before.advantages is not plan.episodes.advantages
    assert plan.weights.tolist() == [1.0] * 3
    assert [(change.reason, change.kind) for change in plan.history] == [("another baseline", "note")]


@pytest.mark.parametrize(
    ("advantages", "message"),
    [(torch.zeros(3), r"has shape \(3,\), expected \(3, 3\)"), (torch.full((3, 3), math.nan), "contains NaN")],
)
def test_advantages_that_make_no_sense_are_refused(advantages: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan().replace_advantages(advantages, reason="rule")


def test_a_rank_without_episodes_has_a_plan_without_weights() -> None:
    plan = UpdatePlan(episodes=make_episodes([], []))
    plan.scale(torch.zeros(0), reason="empty")
    assert plan.keep.shape == (0,)


def test_recorded_numbers_get_the_name_of_their_group() -> None:
    plan = make_plan()
    plan.record(influence__kept_fraction=1, plain=torch.tensor(0.5))
    plan.record(plain=2.0)
    assert plan.metrics == {"influence/kept_fraction": 1.0, "plain": 2.0}
    assert all(type(number) is float for number in plan.metrics.values())


def test_a_minibatch_holds_what_it_was_given_and_nothing_else() -> None:
    episodes, weights, value_weights = make_episodes([1], [1]), torch.ones(1), torch.zeros(1)
    minibatch = Minibatch(
        episodes=episodes, weights=weights, value_weights=value_weights, policy_denominator=2.0, value_denominator=3.0
    )
    assert minibatch.episodes is episodes
    assert minibatch.weights is weights
    assert minibatch.value_weights is value_weights
    assert (minibatch.policy_denominator, minibatch.value_denominator) == (2.0, 3.0)
    # Lightning walks through dataclasses that pass a wrapped module and refuses frozen ones
    assert not dataclasses.is_dataclass(minibatch)


def make_rollout_plan() -> RolloutPlan:
    batch = {"prompts": ["a", "b", "c"], "examples": [{}, {}, {}]}
    return RolloutPlan(batch=batch, counts=torch.tensor([2, 2, 2]))


def test_responses_are_allocated_to_prompts() -> None:
    plan = make_rollout_plan()
    plan.allocate(torch.tensor([0, 5, 1], dtype=torch.int32), reason="hard ones first")
    assert (plan.counts.tolist(), plan.counts.dtype, plan.history) == ([0, 5, 1], torch.int64, ["hard ones first"])


@pytest.mark.parametrize(
    "counts",
    [torch.tensor([1, 2]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1, 2, 2]), torch.zeros(3, dtype=torch.long)],
    ids=["too few", "fractions", "negative", "nothing at all"],
)
def test_counts_that_make_no_sense_are_refused(counts: Tensor) -> None:
    plan = make_rollout_plan()
    with pytest.raises(UserError, match=r"plan\.allocate: counts of 'rule' are .*; expected"):
        plan.allocate(counts, reason="rule")
    assert plan.counts.tolist() == [2, 2, 2]


def test_prompts_are_replaced_with_all_their_columns() -> None:
    plan = make_rollout_plan()
    plan.replace_prompts({"prompts": ["d"], "examples": [{}]}, counts=torch.tensor([4]), reason="solved ones left out")
    assert (plan.batch["prompts"], plan.counts.tolist()) == (["d"], [4])
    with pytest.raises(UserError, match="left out examples"):
        plan.replace_prompts({"prompts": ["d"]}, counts=torch.tensor([4]), reason="rule")
    with pytest.raises(UserError, match="2 entries of examples for 1 counts"):
        plan.replace_prompts({"prompts": ["d"], "examples": [{}, {}]}, counts=torch.tensor([4]), reason="rule")


def test_a_rollout_that_has_begun_is_not_planned_again() -> None:
    plan = make_rollout_plan()
    plan.sealed = True
    with pytest.raises(UserError, match="'late' came after sampling had begun"):
        plan.allocate(torch.tensor([1, 1, 1]), reason="late")
