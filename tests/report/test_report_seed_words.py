"""What a few seeds are called: a range without a verdict, in the page and in its captions."""

from __future__ import annotations

import random
import re
from statistics import fmean

import pytest

from ippo_lightning.report import read_comparison, summarise
from ippo_lightning.report.rendering import render_html
from ippo_lightning.report.seed_words import band_words, coverage, difference_words, table_spread
from ippo_lightning.report.summary import bootstrap_interval, seed_interval

THREE_ERRORS = 0.05
"""Standard errors of a fraction of 400 draws, about three of them."""


def of_seeds(*counts):
    methods = {str(n): {"seeds": [*range(n)], "interval_over": "seeds" if n > 1 else "prompts"} for n in counts}
    pairs = {str(n): {"exact_match": {"seeds": [*range(n)], "interval": [0.0, 1.0]}} for n in counts}
    return {"methods": methods, "differences": pairs}


@pytest.mark.parametrize("values", [(0.3, 0.1), (0.3, 0.1, 0.2), (0.3, 0.1, 0.2, 0.2)])
def test_few_seeds_have_their_range(values):
    assert seed_interval([*values, None]) == [0.1, 0.3]
    assert seed_interval(values + (0.4,) * 3) == bootstrap_interval(values + (0.4,) * 3)


@pytest.mark.parametrize("values", [(), (0.3,), (0.3, 0.3), (0.3 - 0.1, 0.2)])
def test_seeds_that_agree_have_no_range(values):
    assert seed_interval(values) is None


@pytest.mark.parametrize(
    ("counts", "spread", "difference"),
    [
        ((2,), "the range of 2 seeds", "Below it the range of 2 seeds: fewer than 5 seeds give no finding."),
        ((1, 3, 4), "the range of 3 to 4 seeds, of one seed the 95 % interval over prompts", "fewer than 5"),
        ((1,), "the 95 % interval over prompts", ""),
        ((5,), "the 95 % interval over seeds", "5 seeds is too narrow"),
        ((2, 30), "the 95 % interval over seeds, the range of 2 seeds", "with at least 5 seeds"),
    ],
)
def test_captions_call_what_stands_below_a_mean_by_its_name(counts, spread, difference):
    results = of_seeds(*counts)
    assert table_spread(results) == spread
    assert difference in difference_words(results)
    assert ("too narrow" in difference_words(results)) == (counts == (5,))


def test_a_band_of_few_seeds_is_their_range():
    assert band_words(of_seeds(1, 3)) == "the range of 3 seeds"
    assert band_words(of_seeds(6)) == "the 95 % interval over seeds"


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_coverage_is_that_of_simulated_seeds(seeds):
    generator = random.Random(0)
    hits = 0
    for _ in range(400):
        values = [generator.gauss(0, 1) for _ in range(seeds)]
        means = sorted(fmean(generator.choices(values, k=seeds)) for _ in range(199))
        hits += means[4] <= 0 <= means[194]
    assert hits / 400 == pytest.approx(coverage(seeds), abs=THREE_ERRORS)


@pytest.mark.parametrize("seeds", [2, 5])
def test_only_enough_seeds_give_a_verdict_in_the_page(folders, seeds):
    comparison = read_comparison(folders.comparison(seeds=seeds, iterations=2, episodes=2))
    html = render_html(comparison, summarise(comparison), {}, skipped=[])
    verdicts = re.findall(r'class="(better|worse|unclear)"', html)
    assert bool(verdicts) == (seeds == 5)
    assert (f"range of {seeds} seeds" in html) == (seeds == 2)
    assert ("95 % interval over seeds" in html) == (seeds == 5)
    assert ("no finding with 2 seeds" in html) == (seeds == 2)
