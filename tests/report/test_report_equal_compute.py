"""Pairs at equal cost, against curves whose values can be computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ippo_lightning.report.equal_compute import cut_at, equal_compute
from ippo_lightning.report.records import Comparison, Method, Run


def run(method: str, seed: int, *, steps: list[float], seconds: list[float], matches: list[float]) -> Run:
    """Return a run with an evaluation before the first iteration and after each."""
    rows = zip(steps, seconds, strict=True)
    history = tuple(
        {
            "iteration": number,
            "update/optimizer_steps": step,
            "rollout/episodes": 8.0,
            "time/iteration_seconds": second,
        }
        for number, (step, second) in enumerate(rows)
    )
    evaluations = tuple({"iteration": number, "exact_match": value} for number, value in enumerate(matches))
    return Run(Path(), method, seed, history=history, evaluations=evaluations, results={})


def comparison(*runs: Run) -> Comparison:
    names = dict.fromkeys(one.method for one in runs)
    methods = {
        name: Method(
            name, name, tuple(one for one in runs if one.method == name), baseline=None if name == "ppo" else "ppo"
        )
        for name in names
    }
    return Comparison(root=Path(), methods=methods)


PPO = {"steps": [4.0, 4.0], "seconds": [1.0, 1.0], "matches": [0.5, 0.6, 0.8]}
IPPO = {"steps": [2.0, 1.0], "seconds": [2.0, 2.0], "matches": [0.5, 0.7, 0.9]}


def test_the_dearer_run_of_a_pair_is_cut_where_the_cheaper_one_ends():
    found = equal_compute(comparison(run("ppo", 1, **PPO), run("ippo", 1, **IPPO)))["ippo - ppo"]
    shown = {
        cost: (view["differences"]["exact_match"]["mean"], view["method_used"], view["baseline_used"])
        for cost, view in found.items()
    }
    assert shown == {
        "iterations": pytest.approx((0.9 - 0.8, 1.0, 1.0)),
        # I-PPO takes 3 steps; PPO has taken 3 of its 8 after three quarters of its first iteration
        "optimizer_steps": pytest.approx((0.9 - 0.575, 1.0, 0.375)),
        "episodes": pytest.approx((0.9 - 0.8, 1.0, 1.0)),
        # PPO takes 2 seconds, which pay one of I-PPO's two iterations
        "seconds": pytest.approx((0.7 - 0.8, 0.5, 1.0)),
    }


def test_episodes_that_were_sampled_for_a_target_are_a_cost():
    dearer = run("ippo", 1, **IPPO)
    # 8 more episodes in the first iteration: after 16 of its 24 the second one has not begun
    history = ({**dearer.history[0], "influence/target_episodes": 8.0}, dearer.history[1])
    found = equal_compute(comparison(run("ppo", 1, **PPO), replace(dearer, history=history)))["ippo - ppo"]
    assert found["episodes"]["method_used"] == 0.5
    assert found["episodes"]["differences"]["exact_match"]["mean"] == pytest.approx(0.7 - 0.8)


def test_pairs_are_those_of_a_seed():
    shifted = {**IPPO, "matches": [0.5, 0.6, 0.7]}
    found = equal_compute(
        comparison(
            run("ppo", 1, **PPO), run("ppo", 2, **PPO), run("ippo", 2, **shifted), run("ippo", 1, **IPPO),
            run("ippo", 3, **IPPO),
        )
    )  # fmt: skip
    difference = found["ippo - ppo"]["iterations"]["differences"]["exact_match"]
    assert difference["seeds"] == [2, 1]
    assert difference["mean"] == pytest.approx((-0.1 + 0.1) / 2)
    assert difference["interval"] == pytest.approx([-0.1, 0.1])


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"matches": [0.5]}, {"iterations", "optimizer_steps", "episodes", "seconds"}),
        ({"steps": [0.0, 0.0]}, {"optimizer_steps"}),
        ({"steps": [float("nan"), 1.0]}, {"optimizer_steps"}),
    ],
    ids=["one evaluation", "no step at all", "a cost that was not recorded"],
)
def test_what_cannot_be_compared_is_left_out(change, missing):
    found = equal_compute(comparison(run("ppo", 1, **PPO), run("ippo", 1, **{**IPPO, **change})))
    assert {"iterations", "optimizer_steps", "episodes", "seconds"} - set(found.get("ippo - ppo", {})) == missing


def test_runs_that_shared_the_cores_are_not_compared_at_equal_seconds():
    shared = replace(comparison(run("ppo", 1, **PPO), run("ippo", 1, **IPPO)), jobs=2)
    assert set(equal_compute(shared)["ippo - ppo"]) == {"iterations", "optimizer_steps", "episodes"}


def test_a_run_whose_last_iterations_cost_nothing_is_read_at_its_end():
    assert cut_at(4.0, [0.0, 4.0, 4.0, 4.0], {0: 0.0, 1: 0.4, 3: 0.8}) == (pytest.approx(0.8), 1.0)


def test_nothing_is_read_beyond_the_evaluations():
    assert cut_at(1.0, [0.0, 2.0, 4.0], {1: 0.5, 2: 0.8}) is None
    assert cut_at(4.0, [0.0, 2.0, 4.0], {0: 0.5, 1: 0.8}) is None


def test_a_pair_is_compared_at_its_last_evaluations_if_the_runs_go_on():
    longer = {"steps": [4.0, 4.0, 4.0], "seconds": [1.0, 1.0, 1.0], "matches": [0.5, 0.6, 0.8]}
    found = equal_compute(comparison(run("ppo", 1, **longer), run("ippo", 1, **IPPO)))["ippo - ppo"]["iterations"]
    assert found["differences"]["exact_match"]["mean"] == pytest.approx(0.1)
    assert (found["method_used"], found["baseline_used"]) == (1.0, pytest.approx(2 / 3))
