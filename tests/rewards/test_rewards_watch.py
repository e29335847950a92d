"""A reward that does not return is named after a minute, and ended after its limit."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import HeldReward, call_reward, watch

TEXTS = {"prompts": ["a", "b"], "responses": ["d", "e"], "examples": [{}, {}]}


def sleeps(prompts: Any, responses: Any, examples: Any) -> list[float]:
    time.sleep(30)
    return [1.0, 1.0]


def loops(prompts: Any, responses: Any, examples: Any) -> list[float]:
    while True:
        pass


def catches_everything(prompts: Any, responses: Any, examples: Any) -> list[float]:
    try:
        time.sleep(30)
    except BaseException:
        return [1.0, 1.0]
    return [0.0, 0.0]


@pytest.mark.parametrize("reward", [sleeps, loops, catches_everything], ids=lambda reward: reward.__name__)
def test_a_reward_that_hangs_is_ended_after_its_limit(reward: Any) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"model\.reward: .*{reward.__name__} ran longer than the 0\.2 seconds of"):
        call_reward(reward, **TEXTS, timeout=0.2)
    assert time.monotonic() - start < 5


def test_a_reward_inside_its_limit_returns_as_without_one() -> None:
    assert call_reward(lambda *_: [1.0, 2.0], **TEXTS, timeout=60).tolist() == [1.0, 2.0]


def test_a_reward_that_hangs_is_named_once(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(watch, "NOTICE_SECONDS", 0.1)

    def slow(prompts: Any, responses: Any, examples: Any) -> list[float]:
        time.sleep(0.5)
        return [1.0, 1.0]

    call_reward(slow, **TEXTS)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "slow has been running for 0.1 seconds" in lines[0]
    assert "model.reward_timeout can limit it" in lines[0]
    call_reward(lambda *_: [1.0, 1.0], **TEXTS)
    assert capsys.readouterr().err == ""


def test_in_another_thread_the_error_comes_when_the_reward_returns() -> None:
    """Python runs handlers of signals in the main thread only."""
    errors: list[BaseException] = []

    def slow(prompts: Any, responses: Any, examples: Any) -> list[float]:
        time.sleep(0.4)
        return [1.0, 1.0]

    def call() -> None:
        try:
            call_reward(slow, **TEXTS, timeout=0.1)
        except UserError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "ran longer than the 0.1 seconds" in str(errors[0])


def test_a_reward_that_never_returns_to_python_ends_the_process_with_an_error() -> None:
    program = """
import hashlib
from ippo_lightning.rewards import call_reward, watch

watch.GRACE_SECONDS = 0.2

def stuck(prompts, responses, examples):
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)  # minutes in C, where no signal is read

call_reward(stuck, prompts=["a"], responses=["b"], examples=[{}], timeout=0.2)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "ippo: error: model.reward: __main__.stuck ran longer than the 0.2 seconds" in done.stderr


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan"), True, "long"])
def test_a_limit_that_is_no_time_is_refused(limit: Any) -> None:
    with pytest.raises(UserError, match=r"model\.reward_timeout: .* is out of range; expected a number > 0"):
        HeldReward(sleeps, timeout=limit)
