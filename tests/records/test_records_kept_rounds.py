"""An iteration as a file keeps it: whole, and refused in one line if it is anything else."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdatePlan
from ippo_lightning.records.kept_rounds import KeptRound, kept_round


def a_round() -> KeptRound:
    plan = UpdatePlan(episodes=make_episodes([2, 1, 1], [2, 1, 3]))
    plan.scale(torch.tensor([1.0, 0.5, 1.0]), reason="length")
    plan.drop(torch.tensor([False, False, True]), reason="influence", scores=torch.tensor([1.0, 2.0, -3.0]))
    return KeptRound(
        iteration=4,
        num_ranks=1,
        episodes=plan.episodes,
        history=tuple(plan.history),
        trains_policy=True,
        parameters={"weight": torch.ones(2)},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}},
        scaler={},
        progress={"iteration": 4},
        random={"torch": torch.get_rng_state()},
        fingerprint="abc",
    )


def through_a_file(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_round_comes_back_from_a_file_as_it_was() -> None:
    before = a_round()
    after = kept_round(through_a_file(before.content()), source="f")
    for name in type(before.episodes).columns():
        assert torch.equal(getattr(after.episodes, name), getattr(before.episodes, name))
    assert after.episodes.prompts == before.episodes.prompts
    assert [change.reason for change in after.history] == ["length", "influence"]
    assert after.weights.tolist() == [1.0, 0.5, 0.0]
    assert after.scores is not None
    assert after.scores.tolist() == [1.0, 2.0, -3.0]
    assert torch.equal(after.optimizer["state"][0]["step"], torch.tensor(3.0))
    assert (after.iteration, after.progress, after.fingerprint) == (4, {"iteration": 4}, "abc")


def test_its_plan_has_the_weights_of_the_run_or_those_given() -> None:
    assert a_round().plan().weights.tolist() == [1.0, 0.5, 0.0]
    assert a_round().plan(torch.tensor([0.0, 2.0, 1.0])).weights.tolist() == [0.0, 2.0, 1.0]


def test_without_a_score_there_are_none() -> None:
    assert replace(a_round(), history=()).scores is None


WRONG_PARTS = {
    "format": 9,
    "num_ranks": 0,
    "iteration": "four",
    "parameters": [],
    "history": [{"reason": "x", "kind": "drop", "factors": torch.ones(2)}],
    "episodes": {"record": "Exploit", "fields": {}},
    "random": None,
    "optimizer": [],
}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_a_wrong_part_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match="buffer: f") as found:
        kept_round({**a_round().content(), name: WRONG_PARTS[name]}, source="f")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "changed",
    [{"record": ["a"]}, {"fields": None}, {"mask": torch.ones(3, 3)}, {"advantages": torch.full((3, 3), torch.nan)}],
    ids=["a list for a name", "no fields", "numbers for a mask", "no number"],
)
def test_rows_of_another_kind_are_refused_in_one_line(changed: dict[str, Any]) -> None:
    content = a_round().content()
    of_record = changed.keys() & {"record", "fields"}
    (content["episodes"] if of_record else content["episodes"]["fields"]).update(changed)
    with pytest.raises(UserError, match="buffer: f"):
        kept_round(content, source="f")


def test_a_parameter_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(UserError, match="parameters"):
        kept_round({**a_round().content(), "parameters": {"weight": "text"}}, source="f")


def test_a_field_of_another_shape_is_refused() -> None:
    content = a_round().content()
    content["episodes"]["fields"]["advantages"] = torch.zeros(3, 1)
    with pytest.raises(UserError, match="advantages"):
        kept_round(content, source="f")
