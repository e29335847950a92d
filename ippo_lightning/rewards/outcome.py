"""Outcome rewards: 1.0 for the right answer, 0.0 otherwise, whatever the reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ippo_lightning.tasks import grade_arithmetic, grade_gsm8k


def arithmetic_reward(
    prompts: Sequence[str], responses: Sequence[str], examples: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Reward the right answer of an arithmetic chain.

    Args:
        prompts: the problems.
        responses: one for each prompt.
        examples: not looked at beyond their number.

    Returns:
        1.0 or 0.0 for each response.
    """
    return [
        float(grade_arithmetic(prompt, response, example).correct)
        for prompt, response, example in zip(prompts, responses, examples, strict=True)
    ]


def gsm8k_reward(
    prompts: Sequence[str], responses: Sequence[str], examples: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Reward the right number after the last `####`.

    Args:
        prompts: not looked at beyond their number.
        responses: one for each prompt.
        examples: `answer` is the reference number of each.

    Returns:
        1.0 or 0.0 for each response.
    """
    return [
        float(grade_gsm8k(prompt, response, example).correct)
        for prompt, response, example in zip(prompts, responses, examples, strict=True)
    ]
