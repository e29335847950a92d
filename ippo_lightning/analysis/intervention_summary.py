"""The numbers of an intervention over its iterations and runs, and the sentences about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ippo_lightning.analysis.intervention import ALL, BEFORE, COMPARED, Intervened
from ippo_lightning.analysis.pages import FROM_ZERO
from ippo_lightning.analysis.training_differences import FEWEST_ROUNDS, Estimate, mean_of_rounds
from ippo_lightning.report.display import counted, signed
from ippo_lightning.report.summary import FEW_SEEDS

_MINUS = "\N{MINUS SIGN}"
TITLES: Mapping[str, str] = {
    "without_negatives": f"without the negatives {_MINUS} all",
    "random_drop": f"random drop {_MINUS} all",
    "negatives_or_random": f"without the negatives {_MINUS} random drop",
    "as_the_run": f"as the run trained {_MINUS} all",
}
"""Of the comparisons, as tables and figures show them."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Everything that a page is about."""

    runs: Mapping[str, Sequence[Intervened]]
    """By short name of the run, in the order of the iterations."""
    unit: str
    """What is measured: `test return`, for example."""
    noun: str
    """What there is one number of: `episode` or `prompt`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, as JSON."""

    @property
    def compared(self) -> list[tuple[str, Intervened]]:
        """The iterations that were trained again, with the name of their run."""
        return [(run, one) for run, found in self.runs.items() for one in found if not one.skipped]

    @property
    def skipped(self) -> list[tuple[str, Intervened]]:
        """The others."""
        return [(run, one) for run, found in self.runs.items() for one in found if one.skipped]


@dataclass(frozen=True)
class Comparison:
    """One of `COMPARED` over all iterations."""

    name: str
    rounds: Sequence[tuple[str, int, Estimate]]
    """Run, iteration and difference."""

    @property
    def title(self) -> str:
        """In words."""
        return TITLES[self.name]

    @property
    def means(self) -> list[float]:
        """One difference per iteration."""
        return [estimate.mean for _, _, estimate in self.rounds]

    @property
    def estimate(self) -> Estimate:
        """The difference of a single iteration, over trainings and episodes; the mean of several, over iterations."""
        return self.rounds[0][2] if len(self.rounds) == 1 else mean_of_rounds(self.means)

    @property
    def signs(self) -> tuple[int, int, int]:
        """Iterations in which the first way was better, worse, equal."""
        return (
            sum(mean > 0 for mean in self.means),
            sum(mean < 0 for mean in self.means),
            sum(mean == 0 for mean in self.means),
        )

    def of_runs(self) -> dict[str, float]:
        """Return the mean difference of each run."""
        return {
            name: sum(found) / len(found)
            for name in dict.fromkeys(run for run, _, _ in self.rounds)
            if (found := [estimate.mean for run, _, estimate in self.rounds if run == name])
        }


def comparisons(outcomes: Outcomes) -> dict[str, Comparison]:
    """Return the comparisons that there are data for, by name.

    Args:
        outcomes: of at least one run.
    """
    differences = [(run, one.iteration, one.differences()) for run, one in outcomes.compared]
    rounds = {
        name: [(run, iteration, found[name]) for run, iteration, found in differences if name in found]
        for name in COMPARED
    }
    return {name: Comparison(name, found) for name, found in rounds.items() if found}


def headline(outcomes: Outcomes) -> str:
    """Return what was found, with its control, in one sentence."""
    found = comparisons(outcomes)
    if not found:
        return "Nothing to compare: no iteration could be trained again without its negative records"
    if changed_nothing(outcomes):
        return _nothing_words(outcomes)
    without, random = found["without_negatives"], found["random_drop"]
    if len(without.rounds) == 1:
        (_, one), *_ = outcomes.compared
        where = f"iteration {one.iteration} ({FROM_ZERO})"
        what = f"Dropping the {counted(one.negatives, 'negative record')} of {where}"
        effect = _effect(without.estimate, outcomes.unit)
        return f"{what} {effect}; a random drop: {shown(random.estimate)}"
    effect = _effect(without.estimate, f"{outcomes.unit} after it")
    return f"Dropping the negative records of an iteration {effect}; a random drop: {shown(random.estimate)}"


def changed_nothing(outcomes: Outcomes) -> bool:
    """Return whether every training of every iteration left each number of the test as it was before.

    Args:
        outcomes: of at least one run.
    """
    rounds = [one for _, one in outcomes.compared]
    return bool(rounds) and all(map(_is_unmoved, rounds))


def _is_unmoved(one: Intervened) -> bool:
    (before,) = one.returns[BEFORE]
    return all(values == before for trainings in one.returns.values() for values in trainings)


def _nothing_words(outcomes: Outcomes) -> str:
    rounds = [one for _, one in outcomes.compared]
    tested = f"the {outcomes.unit} of each of the {counted(_tested(rounds[0]), outcomes.noun)} stayed the same"
    if len(rounds) > 1:
        return (
            f"None of the {len(rounds)} iterations changed anything in its test: with all records, without the "
            f"negative ones and after a random drop, {tested}"
        )
    (one,) = rounds
    return (
        f"Iteration {one.iteration} ({FROM_ZERO}) changed nothing in the test: with all records, without the "
        f"{counted(one.negatives, 'negative one')} and after a random drop, {tested}"
    )


def _tested(one: Intervened) -> int:
    return len(one.returns[BEFORE][0])


def lead(outcomes: Outcomes) -> list[str]:
    """Return the sentences below the headline."""
    found = comparisons(outcomes)
    sentences = []
    if changed_nothing(outcomes):
        sentences.append(
            "So there is nothing to compare, and the scores are neither right nor wrong here. Choose iterations in "
            f"which the curve of the report rises, or more {outcomes.noun}s."
        )
        sentences += _about_runs(outcomes)
    elif found:
        control = found["negatives_or_random"]
        sentences += [f"{_verdict(control)}.", *_counts(control)]
        if 1 < len(control.rounds) < FEWEST_ROUNDS:
            sentences.append(
                f"Fewer than {FEWEST_ROUNDS} iterations have no interval over iterations, and give no finding."
            )
        sentences += _about_the_training(outcomes)
        sentences += _about_runs(outcomes)
    sentences += [
        f"{run}, iteration {one.iteration} is left out: {one.skipped}." for run, one in outcomes.skipped[:_MOST_NAMED]
    ]
    more = len(outcomes.skipped) - _MOST_NAMED
    return [*sentences, f"{counted(more, 'more iteration')} are left out for such reasons."] if more > 0 else sentences


_MOST_NAMED = 3


def _counts(control: Comparison) -> list[str]:
    if len(control.rounds) == 1:
        return []
    better, worse, equal = control.signs
    return [
        f"Means over {len(control.rounds)} iterations. The filter was better than a random drop of as many records in "
        f"{better} of them, worse in {worse} and equal in {equal}."
    ]


def _about_the_training(outcomes: Outcomes) -> list[str]:
    rounds = [one for _, one in outcomes.compared]
    gains = [one.means()[ALL] - one.means()[BEFORE] for one in rounds]
    gain, fraction = sum(gains) / len(gains), sum(one.negatives / one.records for one in rounds) / len(rounds)
    average = " on average" if len(rounds) > 1 else ""
    sentences = [
        f"For scale: training on all records changes the {outcomes.unit} by {signed(gain)}{average}. "
        f"{100 * fraction:.0f} % of the records have negative scores{average}."
    ]
    unmoved = [one for one in rounds if all(values == one.returns[BEFORE][0] for values in one.returns[ALL])]
    if unmoved:
        where = "" if len(rounds) == 1 else f"In {len(unmoved)} of {len(rounds)} iterations "
        sentence = (
            f"{where}training on all records changed the outcome of no test {outcomes.noun}: what one iteration does "
            f"is then too small for {counted(_tested(unmoved[0]), outcomes.noun)}."
        )
        sentences.append(sentence[:1].upper() + sentence[1:])
    return sentences


def _about_runs(outcomes: Outcomes) -> list[str]:
    runs = len({run for run, _ in outcomes.compared})
    of_them = "this one run" if runs == 1 else f"these {runs} runs"
    return [f"This is about {of_them}: fewer than {FEW_SEEDS} seeds tell little about another seed."] if (
        runs < FEW_SEEDS
    ) else []  # fmt: skip


def shown(estimate: Estimate) -> str:
    """Return a difference with its interval, if it has one, in as many digits as the interval supports.

    Args:
        estimate: of a difference.

    Example:
        >>> shown(Estimate(0.0426, 0.0044, 50.0))
        '+0.0426 [+0.0338, +0.0514]'
    """
    interval = estimate.interval
    if interval is None:
        return signed(estimate.mean)
    mean, low, high = (in_digits_of(estimate, value) for value in (estimate.mean, *interval))
    return f"{mean} [{low}, {high}]"


def in_digits_of(estimate: Estimate, value: float) -> str:
    """Return a number with its sign, in as many decimals as half the width of an interval has two digits.

    Args:
        estimate: with the interval; without one the number has about three significant digits.
        value: of the same unit.
    """
    interval = estimate.interval
    if interval is None:
        return signed(value)
    decimals = max(0, 1 - math.floor(math.log10((interval[1] - interval[0]) / 2)))
    rounded = round(value, decimals)
    return f"{rounded:+,.{decimals}f}".replace("-", _MINUS) if rounded else f"±{0:.{decimals}f}"


def is_finding(estimate: Estimate) -> bool:
    """Return whether the interval leaves out zero."""
    interval = estimate.interval
    return interval is not None and not interval[0] <= 0 <= interval[1]


def _effect(estimate: Estimate, unit: str) -> str:
    """Return what a way to train does to the test, as the end of a sentence."""
    if estimate.interval is None:
        return f"changed the {unit} by {shown(estimate)}" if estimate.mean else f"did not change the {unit}"
    if not is_finding(estimate):
        return f"shows no clear change of the {unit}: {shown(estimate)}"
    return f"{'raises' if estimate.mean > 0 else 'lowers'} the {unit}: {shown(estimate)}"


def _verdict(control: Comparison) -> str:
    """Return what the comparison with the random drop shows."""
    estimate = control.estimate
    if estimate.interval is None:
        return f"Against the random drop: {shown(estimate)}, without an interval"
    if not is_finding(estimate):
        return f"No difference from the random drop is shown: {shown(estimate)}"
    word = "better" if estimate.mean > 0 else "worse"
    return f"The scores choose {word} than chance: {shown(estimate)} against the random drop"


def as_json(outcomes: Outcomes) -> dict[str, Any]:
    """Return everything as JSON."""
    return {
        "settings": dict(outcomes.settings),
        "unit": outcomes.unit,
        "headline": headline(outcomes),
        "comparisons": {
            name: {
                "mean": found.estimate.mean,
                "interval": found.estimate.interval,
                "better_worse_equal": found.signs,
                "runs": found.of_runs(),
            }
            for name, found in comparisons(outcomes).items()
        },
        "iterations": [
            {
                "run": run, "iteration": one.iteration, "records": one.records, "negatives": one.negatives,
                "scores_of": one.scores_of, "skipped": one.skipped, "steps": dict(one.steps), "means": one.means(),
                "differences": {
                    name: {"mean": found.mean, "interval": found.interval}
                    for name, found in one.differences().items()
                },
            }
            for run, rounds in outcomes.runs.items()
            for one in rounds
        ],
    }  # fmt: skip


def summary_lines(outcomes: Outcomes) -> list[str]:
    """Return the summary for a terminal: the headline, and a line per comparison unless nothing changed."""
    lines = [f"{headline(outcomes)}."]
    if changed_nothing(outcomes):
        return [*lines, *lead(outcomes)[:1]]
    lines.append("")
    for found in comparisons(outcomes).values():
        better, worse, equal = found.signs
        signs = f", better {better}, worse {worse}, equal {equal}" if len(found.rounds) > 1 else ""
        lines.append(f"{found.title}: {shown(found.estimate)}{signs}")
    return lines
