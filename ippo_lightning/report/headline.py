"""The results in sentences. A sentence claims a direction only if the numbers support it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ippo_lightning.report.display import counted, in_words, percent, plain
from ippo_lightning.report.measures import MEASURES, ComparedMetric
from ippo_lightning.report.seed_words import spread_name
from ippo_lightning.report.summary import (
    FEW_SEEDS,
    MethodSummary,
    PairedDifference,
    Results,
    last_third,
    pair_key,
)
from ippo_lightning.report.tables import median_seconds, shared_cores_words

FEW_ITERATIONS = 5
"""Of fewer iterations the seconds are those of the start: compiling, loading, first allocations."""


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
        A line without a full stop. It claims a direction only if the 95 % interval over at least five paired seeds
        excludes zero.
    """
    featured = _featured(results)
    if featured is None:
        titles = [summary["title"] for summary in results["methods"].values()]
        return f"Results of {in_words(titles)}"
    pair = f"{results['methods'][featured]['title']} against {baseline_summary(results, featured)['title']}"
    num_seeds = _num_seeds(results, featured)
    # So few seeds support no verdict, so the headline contains numbers and claims no direction.
    if num_seeds < FEW_SEEDS:
        seeds = "on one seed" if num_seeds == 1 else f"gives no finding with {num_seeds} seeds"
        return f"{pair} {seeds}: {_bare_differences(results, featured)}"
    found = findings(results, featured)
    if all(finding.word == "unclear" for finding in found):  # one clause instead of one per metric
        return f"{pair}: no clear difference on {num_seeds} seeds"
    clauses = [MEASURES[finding.metric].clauses[finding.word] for finding in found]
    return f"{pair}: {', '.join(clauses)}"


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
    measure, interval = MEASURES[metric], difference["interval"]
    num_seeds = len(difference["seeds"])
    is_few = num_seeds < FEW_SEEDS
    word = "unclear" if interval is None or is_few else _word(measure.good, interval)
    mine, other = results["methods"][method], baseline_summary(results, method)
    spread = ""
    if interval is not None:
        low, high = map(measure.show_difference, interval)
        spread = f" ({spread_name(num_seeds)}{' over the test prompts' if num_seeds == 1 else ''} {low} to {high})"
    claims = {"better": " is better", "worse": " is worse", "unclear": " shows no clear difference"}
    # Of a few pairs the caution below tells once what their numbers are.
    claim = "" if is_few else claims[word]
    unit = " points" if measure.is_fraction else ""
    sentence = (
        f"{measure.title}{claim}: {measure.show(mine[metric])}{measure.unit} against "
        f"{measure.show(other[metric])}{measure.unit}, {measure.show_difference(difference['mean'])}{unit}{spread}."
    )
    return Finding(metric=metric, word=word, sentence=sentence)


def _word(good: int, interval: list[float]) -> str:
    # After the change of sign, positive means better for any metric.
    # Sorted, because the change of sign exchanges the bounds.
    low, high = sorted(good * bound for bound in interval)
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def _bare_differences(results: Results, method: str) -> str:
    """Return the differences without a verdict; one whose range or interval contains zero shows none."""
    differences = difference_of(results, method) or {}
    measured = {metric: one for metric, one in differences.items() if one["mean"] is not None}
    if measured and all(map(_contains_zero, measured.values())):
        return "no difference shown"
    return ", ".join(_bare_difference(metric, one) for metric, one in measured.items())


def _bare_difference(metric: ComparedMetric, difference: PairedDifference) -> str:
    measure = MEASURES[metric]
    if _contains_zero(difference):
        return f"{_in_a_sentence(metric)} no difference shown"
    unit = " points" if measure.is_fraction else ""
    return f"{_in_a_sentence(metric)} {measure.show_difference(difference['mean'])}{unit}"


def _contains_zero(difference: PairedDifference) -> bool:
    interval, mean = difference["interval"], difference["mean"]
    return mean == 0 if interval is None else interval[0] <= 0 <= interval[1]


def _in_a_sentence(metric: ComparedMetric) -> str:
    return MEASURES[metric].title.lower()


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
    # An evaluation has no iterations, so no seconds to compare with.
    elif seconds is not None and others and not _has_few_iterations(mine) and not _has_few_iterations(other):
        ratio = seconds / others
        change = f"{percent(abs(ratio - 1), digits=0)} % {'more' if ratio > 1 else 'less'}"
        sentences.append(f"An iteration took {plain(seconds)} s against {plain(others)} s (medians), {change}.")
    return sentences


def _has_few_iterations(summary: MethodSummary) -> bool:
    return len(summary.get("iteration_seconds", [])) < FEW_ITERATIONS


def _caution(num_seeds: int) -> list[str]:
    if num_seeds >= FEW_SEEDS:
        return []
    if num_seeds == 1:
        return ["One seed only, so no finding: the difference is that of two runs, and another seed may give another."]
    return [f"{counted(num_seeds, 'seed')} only, so no finding: read differences as hints."]


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
    return [f"The table of differences also compares {in_words(titles)}."] if titles else []
