"""A reward that is a coroutine is waited for, with the limit and the errors of any reward."""

from __future__ import annotations

import asyncio

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import call_reward

TEXTS = {"prompts": ["a", "b", "c"], "responses": ["d", "e", "f"], "examples": [{}, {}, {}]}


async def waits(prompts, responses, examples):
    await asyncio.sleep(0)
    return list(await asyncio.gather(*(one(response) for response in responses)))


async def one(response: str) -> float:
    await asyncio.sleep(0)
    return float(ord(response))


def test_a_coroutine_is_waited_for() -> None:
    assert call_reward(waits, **TEXTS).tolist() == [100.0, 101.0, 102.0]


def test_a_coroutine_is_waited_for_in_a_notebook_too() -> None:
    """There the thread has a loop of its own."""

    async def cell() -> list[float]:
        return call_reward(waits, **TEXTS).tolist()

    assert asyncio.run(cell()) == [100.0, 101.0, 102.0]


async def never_ends(prompts, responses, examples):
    await asyncio.sleep(60)


async def raises(prompts, responses, examples):
    raise RuntimeError("no answer from the server")


def test_a_coroutine_has_the_limit_and_the_errors_of_any_reward() -> None:
    with pytest.raises(UserError, match=r"never_ends ran longer than the 0\.2 seconds of model\.reward_timeout"):
        call_reward(never_ends, **TEXTS, timeout=0.2)
    with pytest.raises(UserError, match=r"raises raised RuntimeError: no answer from the server"):
        call_reward(raises, **TEXTS)
