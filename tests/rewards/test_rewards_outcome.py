"""Outcome rewards look at the answer and at nothing else."""

from __future__ import annotations

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import arithmetic_reward, call_reward, gsm8k_reward


def test_arithmetic_pays_for_the_right_answer_whatever_the_reasoning() -> None:
    responses = ["7+12=19;19-5=14;#14", "#14", "9+5=14;#14", "7+12=20;#14", "7+12=19;19-5=14;#13", "", "14"]
    rewards = arithmetic_reward(["7+12-5?"] * 7, responses, [{}] * 7)
    assert rewards == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_word_problems_pay_for_the_right_answer_whatever_the_reasoning() -> None:
    responses = ["<<48/2=24>>\n#### 72", "#### 72.0", "<<48/2=25>>#### $72", "<<x>>#### 72", "#### 73", "72"]
    assert gsm8k_reward(["?"] * 6, responses, [{"answer": "72"}] * 6) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("reward", [arithmetic_reward, gsm8k_reward])
def test_no_episodes_have_no_rewards(reward) -> None:
    assert reward([], [], []) == []
    assert call_reward(reward, prompts=[], responses=[], examples=[]).shape == (0,)


def test_a_prompt_that_is_no_problem_is_one_line_for_the_user() -> None:
    with pytest.raises(UserError, match=r"arithmetic_reward raised UserError: arithmetic problem: 'hello'"):
        call_reward(arithmetic_reward, prompts=["hello"], responses=["#1"], examples=[{}])
