"""A difference between labels is named only if it is larger than chance makes it."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

from ippo_lightning.report import read_run
from ippo_lightning.report.contrast import contrast_words, kept_contrast
from ippo_lightning.report.records import EpisodeRow

# One pair, so the level of both is 95 %. Of 300 units, an interval with added units and one of 2000 resamples differ by
# about a tenth of their width of 0.07.
TWO_APPROXIMATIONS = 0.01


def episodes(kept, *, prompts, iterations=None):
    """Return episodes, each prompt in an iteration of 20 if no other is given."""
    places = [prompt % 20 for prompt in prompts] if iterations is None else iterations
    return [
        EpisodeRow(
            iteration=iteration, prompt=str(prompt), response="r", label="l", reward=1.0, advantage=1.0, score=None,
            weight=float(one),
        )
        for one, prompt, iteration in zip(kept, prompts, places, strict=True)
    ]  # fmt: skip


def groups_without_difference(generator, *, num_groups=6, num_prompts=40, samples=4):
    """Draw groups that keep the same fraction; responses to one prompt are kept or dropped together."""
    found = {}
    for group in range(num_groups):
        kept = np.repeat(generator.random(num_prompts) < 0.5, samples)
        found[f"group {group}"] = episodes(kept, prompts=np.repeat(np.arange(num_prompts), samples))
    return found


def few_prompts(generator, *, num_prompts):
    """Draw one group of few prompts and one of many, each prompt kept or dropped as a whole."""
    return {
        name: episodes(np.repeat(generator.random(size) < 0.5, 8), prompts=np.repeat(np.arange(first, first + size), 8))
        for name, first, size in (("few", 0, num_prompts), ("many", 100, 40))
    }


def iterations_that_differ(generator, *, num_iterations=12, num_groups=4, num_prompts=16):
    """Draw groups whose chance to be kept has the same mean, and differs from iteration to iteration."""
    chances = np.clip(generator.normal(0.5, 0.3, size=(num_groups, num_iterations)), 0, 1)
    iterations = np.repeat(np.arange(num_iterations), num_prompts)
    return {
        str(group): episodes(generator.random(len(iterations)) < chance[iterations],
                             prompts=np.arange(len(iterations)), iterations=iterations)
        for group, chance in enumerate(chances)
    }  # fmt: skip


def one_large_prompt(generator):
    """Draw groups in which one of twelve prompts has nearly all responses."""
    sizes = [200] + [2] * 11
    return {
        str(group): episodes(np.repeat(generator.random(12) < 0.5, sizes), prompts=np.repeat(np.arange(12), sizes))
        for group in range(2)
    }


@pytest.mark.parametrize(
    "draw",
    [
        groups_without_difference,
        functools.partial(groups_without_difference, num_groups=3, num_prompts=60, samples=8),
        functools.partial(few_prompts, num_prompts=1),
        functools.partial(few_prompts, num_prompts=5),
        functools.partial(few_prompts, num_prompts=11),
        iterations_that_differ,
        functools.partial(iterations_that_differ, num_iterations=5),
        one_large_prompt,
    ],
)
def test_where_nothing_differs_a_difference_is_rarely_shown(draw):
    generator = np.random.default_rng(0)
    found = [kept_contrast(draw(generator)) for _ in range(60)]
    # At most 5 % of the time; of 60 draws, 8 or more would happen once in 100 by chance. Episodes as units would show a
    # difference in most draws, because the responses to a prompt and the episodes of an update are one observation.
    assert sum(contrast is not None and contrast.is_shown for contrast in found) <= 7


def test_prompts_that_begin_alike_are_prompts_of_their_own(tmp_path):
    """The text of a prompt is cut, and a task may give all prompts the same long beginning."""
    rows = [
        {"iteration": i % 20, "prompt": f"{'as follows ' * 100}{i:02d}", "response": "r", "label": label,
         "advantage": 1.0, "weight": float((i % 10 < 9) == (label == "a"))}
        for i in range(100) for label in "ab"
    ]  # fmt: skip
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_run(tmp_path).episodes
    assert len({episode.prompt for episode in read}) == 1
    groups = {label: [one for one in read if one.label == label] for label in "ab"}
    long = kept_contrast(groups)
    short = kept_contrast(
        {label: [replace(one, prompt=str(place), prompt_key="") for place, one in enumerate(members)]
         for label, members in groups.items()}
    )  # fmt: skip
    assert long is not None
    assert short is not None
    assert long.interval == pytest.approx(short.interval, rel=1e-12)


@pytest.mark.parametrize("unit", ["prompts", "iterations"])
def test_the_interval_is_that_of_resampled_units(unit):
    generator = np.random.default_rng(1)
    places = np.repeat(np.arange(300), 4)
    units = {"prompts": np.arange(1200), "iterations": np.arange(1200)} | {unit: places}
    chance = np.repeat(generator.beta(1, 1, size=300), 4)
    first, second = generator.random(1200) < chance, generator.random(1200) < 0.6 * chance
    contrast = kept_contrast({"a": episodes(first, **units), "b": episodes(second, **units)})
    resampled = []
    for _ in range(2000):
        rows = (4 * generator.integers(300, size=300)[:, None] + np.arange(4)).ravel()
        resampled.append(first[rows].mean() - second[rows].mean())
    assert contrast is not None
    assert (contrast.more.title, contrast.less.title) == ("a", "b")
    assert contrast.interval == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist(), abs=TWO_APPROXIMATIONS)


def test_the_pair_that_surely_differs_is_named_and_not_a_small_group_at_the_edge():
    groups = {
        "few": episodes([1] * 9 + [0] * 2, prompts=range(11)),  # 82 %
        "many": episodes([1, 0] * 300 + [1] * 400, prompts=range(1000)),
        "less": episodes([1, 0] * 300 + [0] * 400, prompts=range(2000, 3000)),
    }
    contrast = kept_contrast(groups)
    assert contrast is not None
    assert (contrast.more.title, contrast.less.title, contrast.is_shown) == ("many", "less", True)
    (sentence,) = contrast_words(contrast)
    assert "the update used 70.0 % of “many” (n = 1,000) and 30.0 % of “less” (n = 1,000)" in sentence


@pytest.mark.parametrize(
    ("kept", "prompts"),
    [
        (([1] * 10, [0] * 2 + [1] * 8), range(10)),  # 100 % and 80 % of ten
        (([1] * 30, [0] * 30), [0] * 30),  # all episodes are of one prompt
    ],
)
def test_a_difference_within_chance_is_not_claimed(kept, prompts):
    contrast = kept_contrast({name: episodes(one, prompts=prompts) for name, one in zip("ab", kept, strict=True)})
    assert contrast_words(contrast)[0].startswith("No difference between labels or signs is shown")


@pytest.mark.parametrize(
    ("prompts", "iterations"),
    [(range(9), None), ([0] * 30, range(30)), (range(30), [0] * 30), (range(30), [0, 1] * 15)],
)
def test_groups_of_few_prompts_or_iterations_are_not_compared(prompts, iterations):
    small = episodes([1] * len(prompts), prompts=prompts, iterations=iterations)
    contrast = kept_contrast({"a": small, "b": episodes([0] * 60, prompts=range(60))})
    assert contrast is None
    (sentence,) = contrast_words(contrast)
    assert sentence.endswith("is shown: that takes two groups of at least 10 prompts and 10 iterations.")
