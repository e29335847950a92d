"""What the numbers say, in sentences that a program can stand by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ippo_lightning.report.display import percent, plain, points
from ippo_lightning.report.summary import BASELINE, last_third
from ippo_lightning.report.tables import mean_seconds

FEW_SEEDS = 5
"""Fewer paired seeds than this cannot carry a finding: of four all fall on one side by chance once in eight."""

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
    """One metric of one method against the baseline: `better`, `worse` or `unclear`, and the sentence that says so."""

    metric: str
    word: str
    sentence: str


def headline(results: Mapping[str, Any]) -> str:
    """Return one line: the featured method (`ippo` where present) against the baseline.

    Args:
        results: from `summarise`.

    Returns:
        A line without a full stop. It claims a direction only where the 95 % interval leaves out zero.
    """
    featured = _featured(results)
    if featured is None:
        titles = [summary["title"] for summary in results["methods"].values()]
        return f"Results of {_listed(titles)}"
    pair = f"{results['methods'][featured]['title']} against {results['methods'][BASELINE]['title']}"
    num_seeds = _num_seeds(results, featured)
    if num_seeds == 1:
        return f"{pair} on one seed: {', '.join(_bare_differences(results, featured))}"
    found = findings(results, featured)
    if all(finding.word == "unclear" for finding in found):
        return f"{pair}: no clear difference on {num_seeds} seeds"
    clauses = [_CLAUSES[(finding.metric, finding.word)] for finding in found]
    return f"{pair}: {', '.join(clauses)}{f' ({num_seeds} seeds only)' if num_seeds < FEW_SEEDS else ''}"


def lead(results: Mapping[str, Any]) -> list[str]:
    """Return the sentences under the headline: numbers, costs, and how far they can be trusted.

    Args:
        results: from `summarise`.

    Returns:
        Whole sentences; empty without a baseline or another method.
    """
    featured = _featured(results)
    if featured is None:
        return []
    sentences = [finding.sentence for finding in findings(results, featured)]
    sentences += _cost(results["methods"][featured], results["methods"][BASELINE])
    return [*sentences, *_caution(_num_seeds(results, featured))]


def findings(results: Mapping[str, Any], method: str) -> list[Finding]:
    """Return what can be said of a method against the baseline, metric by metric.

    Args:
        results: from `summarise`.
        method: its name, a key of `results["methods"]`.

    Returns:
        One finding a metric that both have, on paired seeds.
    """
    differences = results["differences"].get(f"{method} - {BASELINE}", {})
    return [
        _finding(results, method, metric, difference)
        for metric, difference in differences.items()
        if difference["mean"] is not None
    ]


def compared_methods(results: Mapping[str, Any]) -> list[str]:
    """Return the names of the methods that have a paired difference, in display order."""
    return [name for name in results["methods"] if f"{name} - {BASELINE}" in results["differences"]]


def _finding(results: Mapping[str, Any], method: str, metric: str, difference: Mapping[str, Any]) -> Finding:
    interval = difference["interval"]
    signed = None if interval is None else sorted(_GOOD_SIGN[metric] * bound for bound in interval)
    word = "unclear" if signed is None else "better" if signed[0] > 0 else "worse" if signed[1] < 0 else "unclear"
    mine, other = results["methods"][method], results["methods"][BASELINE]
    spread = "" if interval is None else f" (95 % interval {points(interval[0])} to {points(interval[1])})"
    claim = {
        "better": "is better",
        "worse": "is worse",
        "unclear": "has one paired seed and so no finding" if signed is None else "shows no clear difference",
    }[word]
    sentence = (
        f"{_NAMES[metric].capitalize()} {claim}: {percent(mine[metric])} % against {percent(other[metric])} %, "
        f"{points(difference['mean'])} points{spread}."
    )
    return Finding(metric=metric, word=word, sentence=sentence)


def _bare_differences(results: Mapping[str, Any], method: str) -> list[str]:
    differences = results["differences"][f"{method} - {BASELINE}"]
    means = {metric: difference["mean"] for metric, difference in differences.items()}
    return [f"{_NAMES[metric]} {points(mean)} points" for metric, mean in means.items() if mean is not None]


def _cost(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    sentences: list[str] = []
    kept = last_third(mine.get("kept_fraction", []))
    if kept is not None:
        sentences.append(
            f"In the last third of training {mine['title']} updated on {percent(kept, digits=0)} % of its episodes."
        )
    seconds, others = mean_seconds(mine), mean_seconds(other)
    if seconds is not None and others:
        ratio = seconds / others
        change = f"{percent(abs(ratio - 1), digits=0)} % {'more' if ratio > 1 else 'less'}"
        sentences.append(f"An iteration took {plain(seconds)} s against {plain(others)} s, {change}.")
    return sentences


def _caution(num_seeds: int) -> list[str]:
    if num_seeds >= FEW_SEEDS:
        return []
    seeds = "One seed" if num_seeds == 1 else f"{num_seeds} seeds"
    return [f"{seeds} only: read differences as hints, not as findings."]


def _num_seeds(results: Mapping[str, Any], method: str) -> int:
    differences = results["differences"][f"{method} - {BASELINE}"]
    return min(len(difference["seeds"]) for difference in differences.values() if difference["seeds"])


def _featured(results: Mapping[str, Any]) -> str | None:
    """Choose `ippo`, else the first method that was trained from episodes, else any."""
    names = compared_methods(results)
    trained = [name for name in names if results["methods"][name].get("kept_fraction")]
    return "ippo" if "ippo" in names else next(iter(trained or names), None)


def _listed(titles: list[str]) -> str:
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"
