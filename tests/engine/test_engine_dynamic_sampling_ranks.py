"""Two gloo processes with dynamic sampling: they make the same rounds, and find what one process finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks_dynamic_sampling as script
from launching import Outcome, outcome_of
from lightning.fabric import Fabric
from training_parts import trainable

EXACT = 1e-10
"""fp64: the two sides add the same numbers in another order."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(Path(script.__file__), tmp_path_factory)


def numbers(of_rank: dict[str, Any]) -> tuple[float, float, float, float]:
    names = ("rounds", "prompts", "groups_dropped", "filled_fraction")
    return tuple(of_rank[f"dynamic_sampling/{name}"] for name in names)


def test_two_ranks_on_halves_of_a_batch_equal_one_rank_on_the_whole(outcome: Outcome, tmp_path: Path) -> None:
    module = script.module_of(script.by_prompt, num_prompts=4)
    module.double()
    start = trainable(module)
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    whole = script.trained(tmp_path / "run", module, fabric, script.PROMPTS)
    halves = [rank["halves"] for rank in outcome.ranks]
    assert numbers(whole) == numbers(halves[0]) == numbers(halves[1]) == (2, 8, 4, 1.0)
    assert whole["episodes_seen"] == halves[0]["episodes_seen"] == 16
    for key in ("prompts", "sampled"):
        assert sorted(whole[key]) == sorted([*halves[0][key], *halves[1][key]])
    assert [len(half["prompts"]) for half in halves] == [1, 3], "one rank needs more refills than the other"
    for half in outcome.tensors("halves"):
        for name, value in trainable(module).items():
            torch.testing.assert_close(half[name], value, rtol=0, atol=EXACT)
    assert any(not torch.equal(start[name], value) for name, value in trainable(module).items())


@pytest.mark.parametrize("name", ["by_rank", "sharded"])
def test_a_rank_without_different_rewards_leaves_the_search_to_the_other_one(outcome: Outcome, name: str) -> None:
    first, second = (rank[name] for rank in outcome.ranks)
    # 2 + 2 at first, 2 are missing; then 1 + 1 and again 1 + 1, of which rank 0 finds one each time
    assert numbers(first) == numbers(second) == (2, 8, 4, 1.0)
    assert (len(first["prompts"]), first["kept"]) == (4, 8)
    assert (len(second["prompts"]), second["kept"]) == (1, 0), "a placeholder that is not trained on"
    # on both, or the kept rows of the ranks could not be joined
    assert first["reasons"] == second["reasons"] == ["equal rewards"]
    assert first["optimizer_steps"] == second["optimizer_steps"] > 0
    assert first["changed"]
    assert second["changed"]


def test_ranks_that_find_nothing_make_the_same_rounds_and_no_step(outcome: Outcome) -> None:
    for rank in outcome.ranks:
        found = rank["all_equal"]
        assert numbers(found) == (2, 12, 12, 0.0)
        assert (found["kept"], found["optimizer_steps"], found["changed"]) == (0, 0, False)
        assert found["episodes_seen"] == 24


def test_what_a_rank_finds_beyond_the_sum_is_not_trained_on(outcome: Outcome) -> None:
    first, second = (rank["odd"] for rank in outcome.ranks)
    assert numbers(first) == numbers(second) == (1, 6, 1, 1.0), "one is missing, and each rank samples one"
    assert (len(first["prompts"]), len(second["prompts"])) == (2, 2)
    assert (len(first["sampled"]), len(second["sampled"])) == (3, 3)


def test_the_smallest_reserve_ends_the_search_of_all_ranks(outcome: Outcome) -> None:
    first, second = (rank["uneven"] for rank in outcome.ranks)
    assert numbers(first) == numbers(second) == (1, 6, 3, 3 / 4)


@pytest.mark.parametrize("name", ["by_rank", "odd", "all_equal"])
def test_both_ranks_have_the_same_parameters(outcome: Outcome, name: str) -> None:
    first, second = outcome.tensors(name)
    assert all(torch.equal(first[key], second[key]) for key in first)
