"""The grade as a reward looks at right and wrong and at nothing else."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import nn

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import HeldGrader, RewardGrader, call_reward, grade_reward
from ippo_lightning.tasks import ArithmeticTask, Grade, grade_arithmetic, grade_gsm8k


def test_arithmetic_pays_for_the_right_answer_whatever_the_reasoning() -> None:
    responses = ["7+12=19;19-5=14;#14", "#14", "9+5=14;#14", "7+12=20;#14", "7+12=19;19-5=14;#13", "", "14"]
    rewards = grade_reward(grade_arithmetic)(["7+12-5?"] * 7, responses, [{}] * 7)
    assert rewards == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_word_problems_pay_for_the_right_answer_whatever_the_reasoning() -> None:
    responses = ["<<48/2=24>>\n#### 72", "#### 72.0", "<<48/2=25>>#### $72", "<<x>>#### 72", "#### 73", "72"]
    rewards = grade_reward(grade_gsm8k)(["?"] * 6, responses, [{"answer": "72"}] * 6)
    assert rewards == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("grader", [grade_arithmetic, ArithmeticTask().grade], ids=["function", "task"])
def test_no_episodes_have_no_rewards(grader: Any) -> None:
    assert grade_reward(grader)([], [], []) == []
    assert call_reward(grade_reward(grader), prompts=[], responses=[], examples=[]).shape == (0,)


@pytest.mark.parametrize(
    ("graded", "expected"), [(True, 1.0), (False, 0.0), (1, 1.0), (0.5, 0.0), ("fine", 1.0), ("Wrong answer", 0.0)]
)
def test_a_grader_that_returns_something_simpler_will_do(graded: Any, expected: float) -> None:
    reward = grade_reward(lambda prompt, response, example: graded)
    assert reward(["a"], ["b"], [{}]) == [expected]


def test_a_prompt_that_is_no_problem_is_one_line_for_the_user() -> None:
    with pytest.raises(UserError, match=r"^arithmetic problem: 'hello'"):
        call_reward(grade_reward(grade_arithmetic), prompts=["hello"], responses=["#1"], examples=[{}])


def test_a_grader_that_raises_is_named_once() -> None:
    def broken(prompt, response, example):
        return example["answer"]

    with pytest.raises(UserError, match=r"^model\.grader: \S*broken raised KeyError: 'answer' in .*test_rewards_grade"):
        call_reward(grade_reward(HeldGrader(broken)), prompts=["a"], responses=["b"], examples=[{}])


@pytest.mark.parametrize(("limit", "correct"), [(3.5, True), (4.0, False), (-1.0, True)])
def test_a_reward_above_the_limit_is_a_right_response(limit: float, correct: bool) -> None:
    grader = RewardGrader(lambda prompts, responses, examples: [float(len(responses[0]))], limit=limit)
    assert HeldGrader(grader)("a", "four", {}) == Grade(correct)


def test_a_reward_that_fails_as_a_grader_is_named() -> None:
    def broken(prompts, responses, examples):
        return [float("nan")]

    with pytest.raises(UserError, match="broken"):
        RewardGrader(broken)("a", "b", {})
    with pytest.raises(UserError, match=r"^grader\.limit: nan"):
        RewardGrader(broken, limit=float("nan"))


def test_a_reward_judges_all_responses_in_one_call_and_each_group_gets_its_own_grades() -> None:
    calls = []

    def length(prompts, responses, examples):
        calls.append((prompts, responses, [example["row"] for example in examples]))
        return [float(len(response)) for response in responses]

    held = HeldGrader(RewardGrader(length, limit=1.5))
    grades = held.grade_groups(["a", "b"], [["1", "22"], ["333", ""]], [{"row": 0}, {"row": 1}])
    assert [[grade.correct for grade in group] for group in grades] == [[False, True], [True, False]]
    assert calls == [(["a", "a", "b", "b"], ["1", "22", "333", ""], [0, 0, 1, 1])]
    assert held.grade_groups([], [], []) == []


def test_a_grader_of_single_responses_grades_groups_one_by_one() -> None:
    held = HeldGrader(lambda prompt, response, example: f"{prompt}{response}{example['row']}")
    grades = held.grade_groups(["a", "b"], [["1", "2"], ["3", "4"]], [{"row": 5}, {"row": 6}])
    assert [[grade.label for grade in group] for group in grades] == [["a15", "a25"], ["b36", "b46"]]


class GradesAll:
    """A grader of one's own with a batch, which returns what it is given or raises it."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def __call__(self, prompt, response, example):
        return True

    def grade_all(self, prompts, responses, examples):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        ([True], r"GradesAll\.grade_all returned 1 grades for 2 responses"),
        ([True, 7], r"GradesAll returned 7"),
        (KeyError("answer"), r"GradesAll\.grade_all raised KeyError: 'answer'"),
    ],
)
def test_a_mistake_in_the_grades_of_a_batch_is_one_line(outcome: Any, message: str) -> None:
    assert HeldGrader(GradesAll([True, "wrong"])).grade_groups(["a"], [["b", "c"]], [{}])[0][1].correct is False
    with pytest.raises(UserError, match=rf"^model\.grader: \S*{message}"):
        HeldGrader(GradesAll(outcome)).grade_groups(["a"], [["b", "c"]], [{}])


@pytest.mark.parametrize("wrapped", [lambda judge: judge, functools.partial], ids=["module", "partial"])
def test_a_grader_that_is_a_model_is_called_in_eval_mode(wrapped: Any) -> None:
    class Judge(nn.Module):
        def forward(self, prompt, response, example):
            return self.training

    judge = Judge()
    assert grade_reward(wrapped(judge))(["a"], ["b"], [{}]) == [0.0]
    assert judge.training


@pytest.mark.parametrize("correct", ["no", 0.5])
def test_a_grade_that_is_neither_right_nor_wrong_earns_nothing(correct: Any) -> None:
    with pytest.raises(UserError, match=r"expected a Grade whose `correct` is a bool"):
        grade_reward(lambda prompt, response, example: Grade(correct))(["a"], ["b"], [{}])
