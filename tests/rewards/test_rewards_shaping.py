"""Format, length, overlong and missing-EOS rewards against numbers worked out by hand."""

from __future__ import annotations

import time

import pytest
import torch
from small_episodes import make_episodes

from ippo_lightning.errors import UserError
from ippo_lightning.rewards import FormatReward, LengthPenalty, MissingEOSPenalty, OverlongPenalty

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


def texts(count: int) -> tuple[list[str], list[str], list[dict]]:
    return ["?"] * count, ["a"] * count, [{}] * count


@pytest.mark.parametrize(
    ("response", "anywhere", "around"),
    [
        ("<think>a</think><answer>b</answer>", 1.0, 1.0),
        (" <think>a</think>\n<answer>b</answer>\n", 1.0, 1.0),
        ("So: <think>a</think><answer>b</answer>", 1.0, 0.0),
        ("<think>a</think><answer>b</answer>!", 1.0, 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0, 0.0),
        ("<answer>b</answer><think>a</think>", 0.0, 0.0),
        ("<think>a</think>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_each_marker_stands_once_and_in_order(response: str, anywhere: float, around: float) -> None:
    assert FormatReward(TAGS)(["?"], [response], [{}]) == [anywhere]
    assert FormatReward(TAGS, at_start=True, at_end=True)(["?"], [response], [{}]) == [around]


def test_a_hostile_response_takes_time_in_its_length_alone() -> None:
    start = time.process_time()
    FormatReward(TAGS)(["?"] * 4, ["<think" * 10**5, "<think>" * 10**5, "<" * 10**6, " " * 10**6], [{}] * 4)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("markers", [[], [""], "<a>", [1]])
def test_markers_that_are_none_are_named(markers) -> None:
    with pytest.raises(UserError, match=r"^reward\.markers: .* is wrong; expected a list of texts"):
        FormatReward(markers)


def test_the_length_penalty_is_a_straight_line() -> None:
    episodes = make_episodes([1] * 3, [1, 4, 8])
    assert LengthPenalty(8)(*texts(3), episodes=episodes).tolist() == [-1 / 8, -0.5, -1.0]


def test_the_overlong_penalty_is_that_of_dapo() -> None:
    """Equation 13 with L = 8, B = 4, for 1 to 9 tokens: (4 - n) / 4 between 4 and 8."""
    episodes = make_episodes([1] * 9, list(range(1, 10)))
    expected = [0, 0, 0, 0, -0.25, -0.5, -0.75, -1, -1]
    assert OverlongPenalty(8, 4)(*texts(9), episodes=episodes).tolist() == expected


def test_a_response_that_never_stopped_misses_its_eos() -> None:
    episodes = make_episodes([1, 1], [2, 3]).evolve(truncated=torch.tensor([True, False]))
    assert MissingEOSPenalty()(*texts(2), episodes=episodes).tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("reward", [LengthPenalty(8), OverlongPenalty(8, 4), MissingEOSPenalty()], ids=type)
def test_without_a_rollout_there_are_no_tokens_to_count(reward) -> None:
    with pytest.raises(UserError, match=r"counts the tokens of a rollout, and was called with texts only"):
        reward(*texts(1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LengthPenalty(0), r"reward\.tokens: 0 is out of range"),
        (lambda: OverlongPenalty(8, 9), r"reward\.buffer_tokens: 9 is out of range; expected an integer >= 1 and <= 8"),
        (lambda: OverlongPenalty(8, 0), r"reward\.buffer_tokens: 0 is out of range"),
    ],
)
def test_a_number_out_of_its_range_is_named(make, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()
