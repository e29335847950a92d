"""One line per episode: what was sampled, what it was worth, and who changed its weight."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from training_parts import tiny_loop, tiny_module

from ippo_lightning.callbacks import EpisodeLog, InfluenceFilter
from ippo_lightning.callbacks.episode_log import MAX_TEXT, episode_rows, factors_of, reasons_of
from ippo_lightning.errors import UserError
from ippo_lightning.records import PlanChange
from ippo_lightning.tasks import Grade


class Kind(str, Enum):
    LUCKY = "lucky"


def change(reason: str, factors: list[float], scores: list[float] | None = None) -> PlanChange:
    kind: Literal["scale", "note"] = "note" if set(factors) == {1} else "scale"
    found = None if scores is None else torch.tensor(scores)
    return PlanChange(reason=reason, kind=kind, factors=torch.tensor(factors), scores=found)


def stats(*history: Any, response: str = "r") -> Any:
    mask = torch.tensor([[True, True], [True, False]])
    episodes = SimpleNamespace(
        prompts=("p", "q"),
        responses=(response, "s"),
        examples=("e", "f"),
        advantages=torch.tensor([[1.0, 2.0], [3.0, 100.0]]),
        response_mask=mask,
        mask=mask,
        outcome_rewards=torch.tensor([1.0, 0.0]),
    )
    sized = type("Sized", (SimpleNamespace,), {"__len__": lambda self: 2})(**vars(episodes))
    plan = SimpleNamespace(history=list(history), weights=torch.tensor([0.0, 1.5]))
    return SimpleNamespace(iteration=4, episodes=sized, plan=plan)


def test_the_log_has_one_line_per_episode(tmp_path: Path) -> None:
    module = tiny_module()
    tiny_loop(tmp_path / "run", module, callbacks=[InfluenceFilter(), EpisodeLog(every_n_iterations=2)]).fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").open(encoding="utf-8")]
    assert len(rows) == 16
    assert {row["iteration"] for row in rows} == {0}
    assert all((row["score"] > 0) == (row["weight"] > 0) for row in rows)
    assert {row["label"] for row in rows} <= {"faithful", "false_positive", "shortcut", "nonsense", "wrong_answer"}
    assert {type(row["correct"]) for row in rows} == {bool}


def test_each_row_names_the_changes_that_touched_it() -> None:
    plan = stats(change("length", [1.0, 0.5]), change("influence", [0.0, 3.0]), change("looked", [1, 1])).plan
    assert reasons_of(plan) == [["influence"], ["length", "influence"]]
    assert factors_of(plan) == [[0.0], [0.5, 3.0]]


def test_a_plan_that_nobody_changed_has_no_reasons() -> None:
    assert reasons_of(stats().plan) == [[], []]


def test_a_row_contains_means_over_the_response_and_the_last_scores() -> None:
    first, second = episode_rows(stats(change("a", [1, 1], [9.0, 9.0]), change("b", [0, 1], [0.5, -0.25])))
    assert first == {
        "iteration": 4, "prompt": "p", "response": "r", "label": None, "correct": None, "reward": 1.0,
        "advantage": 1.5, "score": 0.5, "weight": 0.0, "reasons": ["b"], "factors": [0.0],
    }  # fmt: skip
    assert (second["advantage"], second["score"], second["weight"]) == (3.0, -0.25, 1.5)


@pytest.mark.parametrize(("label", "written"), [("any words", "any words"), (Kind.LUCKY, "lucky"), (None, None)])
def test_a_grader_may_give_any_label_or_none(label: Any, written: str | None) -> None:
    rows = episode_rows(stats(), grader=lambda *_: Grade(label=label, correct=True))
    assert [(row["label"], row["correct"]) for row in rows] == [(written, True)] * 2


def test_the_grader_reads_the_full_response_and_the_log_keeps_its_beginning() -> None:
    read = []

    def grader(prompt: str, response: str, example: Any) -> Any:
        read.append((prompt, len(response), example))
        return Grade(correct=False)

    rows = episode_rows(stats(response="x" * 5000), grader=grader)
    assert read == [("p", 5000, "e"), ("q", 1, "f")]
    assert len(rows[0]["response"]) == MAX_TEXT


def test_settings_out_of_range_are_refused() -> None:
    expected = r"^EpisodeLog\.every_n_iterations: 0 is out of range; expected an integer >= 1$"
    with pytest.raises(UserError, match=expected):
        EpisodeLog(every_n_iterations=0)
