"""What a range or an interval over seeds is called, and how far it can be trusted."""

from __future__ import annotations

from math import sqrt

from scipy import stats

from ippo_lightning.report.summary import FEW_SEEDS, Results

_MANY_SEEDS = 20
"""With so many, an interval covers about 93 % and needs no note."""
_OVER_PROMPTS = "the 95 % interval over prompts"


def spread_name(num_seeds: int) -> str:
    """Return what the two bounds around a mean are called.

    Args:
        num_seeds: that the mean is over; one seed has an interval over its prompts.

    Example:
        >>> spread_name(2), spread_name(5)
        ('range of 2 seeds', '95 % interval')
    """
    return f"range of {num_seeds} seeds" if 1 < num_seeds < FEW_SEEDS else "95 % interval"


def table_spread(results: Results) -> str:
    """Return what stands below the means of the table of results, in words; empty if nothing does.

    Args:
        results: from `summarise`.
    """
    spreads = [
        (summary["interval_over"], len(summary["seeds"]))
        for summary in results["methods"].values()
        if summary["interval_over"] is not None
    ]
    few = {count for over, count in spreads if over == "seeds" and count < FEW_SEEDS}
    enough = any(over == "seeds" and count >= FEW_SEEDS for over, count in spreads)
    parts = ["the 95 % interval over seeds"] if enough else []
    parts += [_range_words(few)] if few else []
    if any(over == "prompts" for over, _ in spreads):
        parts.append("of one seed the 95 % interval over prompts" if parts else _OVER_PROMPTS)
    return ", ".join(parts)


def difference_words(results: Results) -> str:
    """Return in sentences what stands below the paired differences, and what it supports.

    Args:
        results: from `summarise`.
    """
    counts = {
        len(one["seeds"])
        for found in results["differences"].values()
        for one in found.values()
        if one["interval"] is not None and len(one["seeds"]) > 1
    }
    few, enough = {n for n in counts if n < FEW_SEEDS}, sorted(n for n in counts if n >= FEW_SEEDS)
    sentences = []
    if few:
        sentences.append(f"Below it {_range_words(few)}: fewer than {FEW_SEEDS} seeds give no finding.")
    if enough:
        sentences.append(
            f"Below it {f'with at least {FEW_SEEDS} seeds ' if few else ''}the 95 % interval. A difference "
            "is called better or worse only if the interval over seeds excludes zero."
        )
    if enough and enough[0] < _MANY_SEEDS:
        sentences.append(
            f"The interval of {enough[0]} seeds is too narrow: for numbers that are spread normally it covers about "
            f"{100 * coverage(enough[0]):.0f} % in place of 95 %."
        )
    return " ".join(sentences)


def band_words(results: Results) -> str:
    """Return what the band around a curve is.

    Args:
        results: from `summarise`.
    """
    counts = {len(summary["seeds"]) for summary in results["methods"].values()} - {0, 1}
    few = {n for n in counts if n < FEW_SEEDS}
    if few == counts:
        return _range_words(few) if few else ""
    few_words = f" ({_range_words(few)} where there are so few)" if few else ""
    return f"the 95 % interval over seeds{few_words}"


def coverage(num_seeds: int) -> float:
    """Return how often a 95 % percentile bootstrap interval contains the mean of normally spread numbers.

    Args:
        num_seeds: that are resampled, at least 2.

    Returns:
        A fraction. The resampled means have the standard deviation of all seeds over its root, divided by n and not
        by n - 1, and the true quantiles are Student's. Source: Hesterberg 2015, doi 10.1080/00031305.2015.1089789.
    """
    reach = stats.norm.ppf(0.975) * sqrt((num_seeds - 1) / num_seeds)
    return float(2 * stats.t.cdf(reach, num_seeds - 1) - 1)


def _range_words(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"the range of {low if low == high else f'{low} to {high}'} seeds"
