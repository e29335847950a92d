"""The results in sentences. A sentence claims a direction only if the numbers support it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ippo_lightning.report.display import percent, plain, points
from ippo_lightning.report.summary import (
    ComparedMetric,
    MethodSummary,
    PairedDifference,
    Results,
    last_third,
    pair_key,
)
from ippo_lightning.report.tables import median_seconds, shared_cores_words

FEW_SEEDS = 5
"""Fewer paired seeds than this cannot support a finding: by chance alone, all of four have one sign once in eight."""

# "them" are the right answers: the exact match always comes first.
_CLAUSES = {
    ("exact_match", "better"): "more right answers",
    ("exact_match", "worse"): "fewer right answers",
    ("exact_match", "unclear"): "no clear change in right answers",
    ("unfaithful_fraction", "better"): "fewer of them unfaithful",
    ("unfaithful_fraction", "worse"): "more of them unfaithful",
    ("unfaithful_fraction", "unclear"): "no clear change in unfaithful reasoning",
}
_NAMES = {"exact_match": "exact match", "unfaithful_fraction": "unfaithful fraction"}
_GOOD_SIGN = {"exact_match": 1, "unfaithful_fraction": -1}


@dataclass(frozen=True)
class Finding:
    """One metric of one method against its baseline."""

    metric: ComparedMetric
    word: str
    """`better`, `worse` or `unclear`."""
    sentence: str
    """The same with its numbers."""


def headline(results: Results) -> str:
    """Return one line: the featured method against its baseline.

    Args:
        results: from `summarise`.

    Returns:
        A line without a full stop. It claims a direction only if the 95 % interval excludes zero.
    """
    featured = _featured(results)
    if featured is None:
        titles = [summary["title"] for summary in results["methods"].values()]
        return f"Results of {_listed(titles)}"
    pair = f"{results['methods'][featured]['title']} against {baseline_summary(results, featured)['title']}"
    num_seeds = _num_seeds(results, featured)
    # One seed has no interval, so its headline contains numbers and claims no direction.
    if num_seeds == 1:
        return f"{pair} on one seed: {', '.join(_bare_differences(results, featured))}"
    found = findings(results, featured)
    if all(finding.word == "unclear" for finding in found):  # one clause instead of one per metric
        return f"{pair}: no clear difference on {num_seeds} seeds"
    clauses = [_CLAUSES[(finding.metric, finding.word)] for finding in found]
    return f"{pair}: {', '.join(clauses)}{f' ({num_seeds} seeds only)' if num_seeds < FEW_SEEDS else ''}"


def lead(results: Results) -> list[str]:
    """Return the sentences below the headline: numbers, costs, and how far they can be trusted.

    Args:
        results: from `summarise`.

    Returns:
        Complete sentences; empty if no method is compared with another.
    """
    featured = _featured(results)
    if featured is None:
        return []
    sentences = [finding.sentence for finding in findings(results, featured)]
    sentences += _cost(
        results["methods"][featured], baseline_summary(results, featured), contended=shared_cores_words(results)
    )
    sentences += _more_pairs(results, featured)
    return [*sentences, *_caution(_num_seeds(results, featured))]


def findings(results: Results, method: str) -> list[Finding]:
    """Compare a method with its baseline, metric by metric.

    Args:
        results: from `summarise`.
        method: its name, a key of `results["methods"]`.

    Returns:
        One finding for each metric that both have on paired seeds.
    """
    differences = difference_of(results, method) or {}
    return [
        _finding(results, method, metric, difference)
        for metric, difference in differences.items()
        if difference["mean"] is not None
    ]


def compared_methods(results: Results) -> list[str]:
    """Return the names of the methods that have a paired difference, in display order."""
    return [name for name in results["methods"] if difference_of(results, name) is not None]


def difference_of(results: Results, method: str) -> Mapping[ComparedMetric, PairedDifference] | None:
    """Return a method's paired difference from its baseline, by metric; None if there is none.

    Args:
        results: from `summarise`.
        method: its name, a key of `results["methods"]`.
    """
    baseline = results["methods"][method]["baseline"]
    return results["differences"].get(pair_key(method, baseline)) if baseline else None


def baseline_summary(results: Results, method: str) -> MethodSummary:
    """Return the summary of the baseline of a method that has a paired difference."""
    baseline = results["methods"][method]["baseline"]
    assert baseline is not None, "a method with a paired difference has a baseline"
    return results["methods"][baseline]


def _finding(results: Results, method: str, metric: ComparedMetric, difference: PairedDifference) -> Finding:
    interval = difference["interval"]
    # After the change of sign, positive means better for either metric.
    # Sorted, because the change of sign exchanges the bounds.
    signed = None if interval is None else sorted(_GOOD_SIGN[metric] * bound for bound in interval)
    word = "unclear" if signed is None else "better" if signed[0] > 0 else "worse" if signed[1] < 0 else "unclear"
    mine, other = results["methods"][method], baseline_summary(results, method)
    spread = "" if interval is None else f" (95 % interval {points(interval[0])} to {points(interval[1])})"
    is_alone = len(difference["seeds"]) == 1
    claim = {
        "better": "is better",
        "worse": "is worse",
        "unclear": "has one paired seed and so no finding" if is_alone else "shows no clear difference",
    }[word]
    sentence = (
        f"{_NAMES[metric].capitalize()} {claim}: {percent(mine[metric])} % against {percent(other[metric])} %, "
        f"{points(difference['mean'])} points{spread}."
    )
    return Finding(metric=metric, word=word, sentence=sentence)


def _bare_differences(results: Results, method: str) -> list[str]:
    differences = difference_of(results, method) or {}
    means = {metric: difference["mean"] for metric, difference in differences.items()}
    return [f"{_NAMES[metric]} {points(mean)} points" for metric, mean in means.items() if mean is not None]


def _cost(mine: MethodSummary, other: MethodSummary, *, contended: str | None) -> list[str]:
    sentences: list[str] = []
    kept = last_third(mine.get("kept_fraction", []))
    if kept is not None:
        sentences.append(
            f"In the last third of training {mine['title']} updated on {percent(kept, digits=0)} % of its episodes."
        )
    seconds, others = median_seconds(mine), median_seconds(other)
    if contended is not None:
        # What a neighbour did at that moment is in the seconds: a ratio of them is no finding.
        sentences.append(contended)
    elif seconds is not None and others:  # an evaluation has no iterations, so no seconds to compare with
        ratio = seconds / others
        change = f"{percent(abs(ratio - 1), digits=0)} % {'more' if ratio > 1 else 'less'}"
        sentences.append(f"An iteration took {plain(seconds)} s against {plain(others)} s (medians), {change}.")
    return sentences


def _caution(num_seeds: int) -> list[str]:
    if num_seeds >= FEW_SEEDS:
        return []
    seeds = "One seed" if num_seeds == 1 else f"{num_seeds} seeds"
    return [f"{seeds} only: read differences as hints, not as findings."]


def _num_seeds(results: Results, method: str) -> int:
    differences = difference_of(results, method) or {}
    # The weaker metric counts: a run may have finished without a right answer, so without an unfaithful fraction.
    return min(len(difference["seeds"]) for difference in differences.values() if difference["seeds"])


def _featured(results: Results) -> str | None:
    """Choose the first featured method, else the first one that was trained from episodes, else the first one."""
    # Methods without a difference are left out, because a headline is a comparison.
    names = compared_methods(results)
    featured = [name for name in names if results["methods"][name]["featured"]]
    trained = [name for name in names if results["methods"][name].get("kept_fraction")]
    return next(iter(featured or trained or names), None)


def _more_pairs(results: Results, shown: str) -> list[str]:
    """Point to the other featured methods: the headline has room for one."""
    methods = results["methods"]
    titles = [
        methods[name]["title"] for name in compared_methods(results) if methods[name]["featured"] and name != shown
    ]
    return [f"The table of differences also compares {_listed(titles)}."] if titles else []


def _listed(titles: list[str]) -> str:
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"
