"""The baselines beside IIF, against plain loops over a rollout of FrozenLake."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning import ControlPPOModule
from ippo_lightning.algorithms import GAE
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.errors import UserError
from ippo_lightning.policies import MLP
from ippo_lightning.records import ControlEpisodes, UpdatePlan
from ippo_lightning.rollouts import EnvironmentSettings
from ippo_lightning.selection import AdvantageHeuristic, SelectionRule, TDPriority

GAMMA = 0.9


@pytest.fixture(scope="module")
def rows() -> ControlEpisodes:
    """300 transitions of 2 environments; the limit of 7 steps cuts episodes, the ice ends others."""
    torch.manual_seed(0)
    environment = EnvironmentSettings(
        id="FrozenLake-v1", options={"is_slippery": False}, num_envs=2, max_episode_steps=7
    )
    module = ControlPPOModule(environment=environment, policy=MLP(hidden=[8]), num_steps=150)
    rows = module.compute_advantages(module.rollout(module.plan_rollout({"rollouts": 1})))
    # No reward is found by chance so soon, and equal numbers would hide mistakes.
    rows = rows.evolve(rewards=torch.randn(rows.rewards.shape))
    assert 0 < int(rows.truncated.sum()) < int(rows.done.sum()) < 150
    return rows


def planned(rows: ControlEpisodes, rule: SelectionRule, dropped: Any = None) -> UpdatePlan:
    plan = UpdatePlan(episodes=rows)
    if dropped is not None:
        plan.drop(dropped, reason="another")
    InfluenceFilter(rule=rule).on_rollout_end(None, None, plan)
    return plan


def returns_of(rows: ControlEpisodes) -> list[float]:
    """From each step: all rewards to the end of the episode, each discounted by its distance, and what is left."""
    found = []
    for start in range(len(rows)):
        total, at = 0.0, start
        while True:
            total += GAMMA ** (at - start) * float(rows.rewards[at])
            if bool(rows.done[at]) or at + 1 == len(rows) or rows.group[at + 1] != rows.group[at]:
                break
            at += 1
        rest = 0.0 if bool(rows.terminated[at]) else float(rows.next_values[at])
        found.append(total + GAMMA ** (at - start + 1) * rest)
    return found


def estimates_of(rows: ControlEpisodes, baseline: str) -> list[float]:
    returns = returns_of(rows)
    if baseline == "critic":
        return [value - float(of_critic) for value, of_critic in zip(returns, rows.values, strict=True)]
    of_state, of_action = defaultdict(list), defaultdict(list)
    keys = [(int(state), int(action)) for state, action in zip(rows.observations, rows.actions, strict=True)]
    for (state, action), value in zip(keys, returns, strict=True):
        of_state[state].append(value)
        of_action[state, action].append(value)
    return [fmean(of_action[key]) - fmean(of_state[key[0]]) for key in keys]


@pytest.mark.parametrize("baseline", ["critic", "states"])
@pytest.mark.parametrize(("by", "fraction"), [("sign", None), ("sign", 0.1), ("size", None), ("size", 0.5)])
def test_the_heuristics_drop_what_a_plain_loop_drops(
    rows: ControlEpisodes, baseline: Any, by: Any, fraction: float | None
) -> None:
    advantages, estimates = rows.advantages[:, 0].tolist(), estimates_of(rows, baseline)
    places = range(len(rows))
    wrong = [at for at in places if by == "size" or advantages[at] * estimates[at] < 0]
    most = {("sign", None): len(rows), ("size", None): len(rows) // 4}.get((by, fraction), int((fraction or 0) * 300))
    largest = sorted(wrong, key=lambda at: -abs(advantages[at] - estimates[at]))[:most]
    rule = AdvantageHeuristic(by=by, fraction=fraction, baseline=baseline, gamma=GAMMA)
    plan = planned(rows, rule)
    assert (~plan.keep).nonzero().flatten().tolist() == sorted(largest)
    assert 0 < len(largest) < len(rows)
    assert plan.weights[plan.keep].unique().tolist() == [1]


def test_the_weights_of_td_errors_are_powers_of_their_ranks(rows: ControlEpisodes) -> None:
    errors = [
        abs(
            float(rows.rewards[at] + GAMMA * (0 if rows.terminated[at] else 1) * rows.next_values[at] - rows.values[at])
        )
        for at in range(len(rows))
    ]
    raw = [0.0] * len(rows)
    for rank, at in enumerate(sorted(range(len(rows)), key=lambda at: -errors[at]), start=1):
        raw[at] = (1 / rank) ** 0.6
    plan = planned(rows, TDPriority(gamma=GAMMA))
    assert plan.weights.tolist() == pytest.approx([weight / fmean(raw) for weight in raw], rel=1e-5)


def test_what_another_filter_drops_does_not_cut_returns(rows: ControlEpisodes) -> None:
    dropped = torch.arange(len(rows)) % 3 == 0
    rule = AdvantageHeuristic(gamma=GAMMA)
    alone, after = planned(rows, rule), planned(rows, rule, dropped)
    assert torch.equal(after.keep, alone.keep & ~dropped)


def module_with(advantages: object) -> Any:
    return SimpleNamespace(evaluates="episodes", advantages=advantages)


@pytest.mark.parametrize("kind", [AdvantageHeuristic, TDPriority])
@pytest.mark.parametrize("given", [None, GAMMA])
def test_the_discount_is_that_of_the_advantages(rows: ControlEpisodes, kind: Any, given: float | None) -> None:
    plan, expected = UpdatePlan(episodes=rows), planned(rows, kind(gamma=GAMMA))
    InfluenceFilter(rule=kind(gamma=given)).on_rollout_end(None, module_with(GAE(gamma=GAMMA)), plan)
    assert torch.equal(plan.weights, expected.weights)
    assert not torch.equal(plan.weights, planned(rows, kind(gamma=0.5)).weights)


@pytest.mark.parametrize("kind", [AdvantageHeuristic, TDPriority])
@pytest.mark.parametrize(
    ("given", "module", "message"),
    [
        (0.5, module_with(GAE(gamma=GAMMA)), r"^rule\.gamma: 0\.5 of \w+ is not the discount .* expected 0\.9, as in"),
        (None, module_with(None), r"^rule\.gamma: null, and the module's advantages have no gamma; expected a number"),
        (None, SimpleNamespace(evaluates="prompts"), r"^InfluenceFilter\.rule: \w+ is for transitions of environments"),
    ],
    ids=["another", "none", "texts"],
)
def test_a_module_that_does_not_fit_is_refused_before_the_first_iteration(
    kind: Any, given: float | None, module: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        InfluenceFilter(rule=kind(gamma=given)).setup(None, module, "fit")


@pytest.mark.parametrize("rule", [AdvantageHeuristic(), TDPriority()])
def test_responses_of_a_language_model_are_refused_in_one_line(rule: SelectionRule) -> None:
    plan = UpdatePlan(episodes=make_episodes([2, 2], [1, 3]))
    with pytest.raises(UserError, match=f"rule: {type(rule).__name__} is for transitions of environments"):
        InfluenceFilter(rule=rule).on_rollout_end(None, None, plan)
