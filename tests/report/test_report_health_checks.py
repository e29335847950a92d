"""The limits of the health checks are consistent, and their advice is there where it is needed."""

from __future__ import annotations

import pytest

from ippo_lightning.report.health_checks import CHECKS, Check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.title)
def test_what_is_good_is_not_bad_and_each_open_side_has_advice(check):
    (low, high), (lowest, highest) = check.good, check.watch
    assert low is None or lowest is None or lowest <= low
    assert high is None or highest is None or high <= highest
    assert (low is None or check.title.startswith("Episodes with numbers")) or check.too_low
    assert high is None or check.too_high
    for text in (check.meaning, check.too_low or "None.", check.too_high or "None."):
        assert text[0].isupper()
        assert text.endswith(".")


@pytest.mark.parametrize(
    ("value", "word"), [(0.0, "bad"), (0.1, "watch"), (0.2, "good"), (0.5, "good"), (0.6, "watch"), (2.0, "bad")]
)
def test_limits_belong_to_the_better_word(value, word):
    check = Check("T", "M.", lambda run: None, good=(0.2, 0.5), watch=(0.1, 1.0))
    assert check.word(value) == word


@pytest.mark.parametrize(
    ("good", "is_percent", "words"),
    [
        ((0.2, None), True, "at least 20 %"),
        ((None, 0.02), False, "at most 0.02"),
        ((0.2, 0.95), True, "20 % to 95 %"),
        ((0.0, 0.0), False, "0"),
    ],
)
def test_the_good_range_is_written_in_words(good, is_percent, words):
    assert Check("T", "M.", lambda run: None, good=good, watch=good, is_percent=is_percent).good_words == words
