"""A difference between labels is named only if it is larger than chance makes it."""

from __future__ import annotations

import numpy as np
import pytest

from ippo_lightning.report.contrast import contrast_words, kept_contrast
from ippo_lightning.report.records import EpisodeRow

# One pair, so the level of both is 95 %. Of 60 prompts, a normal interval and one of 2000 resamples differ by about a
# tenth of their width of 0.13.
TWO_APPROXIMATIONS = 0.02


def episodes(kept, *, prompts):
    return [
        EpisodeRow(
            iteration=0, prompt=str(prompt), response="r", label="l", reward=1.0, advantage=1.0, score=None,
            weight=float(one),
        )
        for one, prompt in zip(kept, prompts, strict=True)
    ]  # fmt: skip


def groups_without_difference(generator, *, num_groups=6, num_prompts=40, samples=4):
    """Draw groups that keep the same fraction; responses to one prompt are kept or dropped together."""
    found = {}
    for group in range(num_groups):
        kept = np.repeat(generator.random(num_prompts) < 0.5, samples)
        found[f"group {group}"] = episodes(kept, prompts=np.repeat(np.arange(num_prompts), samples))
    return found


def test_where_nothing_differs_a_difference_is_rarely_shown():
    generator = np.random.default_rng(0)
    found = [kept_contrast(groups_without_difference(generator)) for _ in range(100)]
    # At most 5 % of the time; of 100 draws, 11 or more would happen once in 90 by chance. Episodes as units would
    # show a difference in most draws, because the four responses to a prompt are one observation.
    assert sum(contrast.is_shown for contrast in found) <= 10


def test_the_interval_is_that_of_resampled_prompts():
    generator = np.random.default_rng(1)
    prompts = np.repeat(np.arange(60), 8)
    chance = np.repeat(generator.beta(2, 2, size=60), 8)
    first, second = generator.random(480) < chance, generator.random(480) < 0.6 * chance
    contrast = kept_contrast({"a": episodes(first, prompts=prompts), "b": episodes(second, prompts=prompts)})
    resampled = []
    for _ in range(2000):
        rows = (8 * generator.integers(60, size=60)[:, None] + np.arange(8)).ravel()
        resampled.append(first[rows].mean() - second[rows].mean())
    assert contrast is not None
    assert (contrast.more.title, contrast.less.title) == ("a", "b")
    assert contrast.interval == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist(), abs=TWO_APPROXIMATIONS)


def test_the_pair_that_surely_differs_is_named_and_not_a_small_group_at_the_edge():
    groups = {
        "few": episodes([1] * 9 + [0] * 2, prompts=range(11)),  # 82 %
        "many": episodes([1] * 700 + [0] * 300, prompts=range(1000)),
        "less": episodes([1] * 300 + [0] * 700, prompts=range(2000, 3000)),
    }
    contrast = kept_contrast(groups)
    assert contrast is not None
    assert (contrast.more.title, contrast.less.title, contrast.is_shown) == ("many", "less", True)
    (sentence,) = contrast_words(contrast)
    assert "the update used 70.0 % of many (n = 1,000) and 30.0 % of less (n = 1,000)" in sentence


@pytest.mark.parametrize(
    ("kept", "prompts"),
    [
        (([1] * 10, [0] * 2 + [1] * 8), range(10)),  # 100 % and 80 % of ten
        (([1] * 30, [0] * 30), [0] * 30),  # all episodes are of one prompt
    ],
)
def test_a_difference_within_chance_is_not_claimed(kept, prompts):
    contrast = kept_contrast({name: episodes(one, prompts=prompts) for name, one in zip("ab", kept, strict=True)})
    assert contrast is not None
    assert contrast_words(contrast)[0].startswith("No difference between labels or signs is shown")


def test_groups_that_are_too_small_are_not_compared():
    assert kept_contrast({"a": episodes([1] * 9, prompts=range(9)), "b": episodes([0] * 50, prompts=range(50))}) is None
