"""What a diagnosis says: one headline, sentences with their numbers, and how each number was made."""

from __future__ import annotations

import numpy as np

from ippo_lightning.analysis.diagnosed_round import DiagnosedRound, lengths_of
from ippo_lightning.analysis.diagnosis import ENOUGH, Control, Summary
from ippo_lightning.analysis.pages import FROM_ZERO
from ippo_lightning.records import TextEpisodes
from ippo_lightning.report.display import counted, percent, plain

_BASELINES = {
    "states": "the mean discounted return of all records with the same observation and action, minus that of all "
    "records with the same observation",
    "critic": "the discounted return minus the critic's value",
    "group": "the reward minus the mean reward of the responses to the same prompt",
    "batch": "the reward minus the mean reward of all responses, because each prompt has one response",
}


def headline(diagnosed: DiagnosedRound) -> str:
    """Return the finding in one sentence."""
    found, noun = diagnosed.found, diagnosed.noun
    lowest = found.of_lowest
    if not found.is_judged:
        return (
            f"Of the {counted(lowest.count, noun)} with the lowest scores, {lowest.judged} can be judged by Monte "
            f"Carlo: too few for a finding"
        )
    control = found.control["wrong_fraction"]
    whose = f"the {counted(lowest.count, noun)} with the lowest scores"
    if lowest.judged < lowest.count:
        whose = f"the {lowest.judged} that can be judged of the {lowest.count} {noun}s with the lowest scores"
    return (
        f"Of {whose}, {_percent(lowest.wrong_fraction)} have an advantage of the wrong sign; of as many random "
        f"{noun}s, {_percent(control.mean)} {_range(control)}"
    )


def verdict(diagnosed: DiagnosedRound) -> str:
    """Return how the lowest records compare with random ones: `more`, `less`, `equal` or `unknown`."""
    found = diagnosed.found
    if not found.is_judged or found.of_lowest.wrong_fraction is None:
        return "unknown"
    control = found.control["wrong_fraction"]
    if found.of_lowest.wrong_fraction > control.high:
        return "more"
    return "less" if found.of_lowest.wrong_fraction < control.low else "equal"


_VERDICTS = {
    "more": "That is more than among random {noun}s: in this iteration, low scores point at wrong advantages, as IIF "
    "reports.",
    "less": "That is less than among random {noun}s: in this iteration, low scores do not point at wrong advantages.",
    "equal": "That is within what random {noun}s give: this iteration does not show that low scores point at wrong "
    "advantages.",
    "unknown": "A {noun} is judged if both advantages have a sign; a finding takes at least {enough} of the lowest.",
}


_SAME_CRITIC = (
    "Both advantages subtract the critic's value here, so that an error of the critic is in both and seldom shows as a "
    "wrong sign."
)


def lead(diagnosed: DiagnosedRound) -> list[str]:
    """Return the sentences below the headline."""
    found, noun = diagnosed.found, diagnosed.noun
    highest, control = found.of_highest, found.control
    sentences = [_VERDICTS[verdict(diagnosed)].format(noun=noun, enough=ENOUGH), *_label_words(diagnosed)]
    sentences += [_SAME_CRITIC] if diagnosed.monte_carlo.baseline == "critic" else []
    if highest.wrong_fraction is not None and highest.judged >= ENOUGH:
        sentences.append(
            f"Of the {counted(highest.judged, noun)} with the highest scores that can be judged, "
            f"{_percent(highest.wrong_fraction)} have the wrong sign; of as many random {noun}s, "
            f"{_percent(control['wrong_fraction'].mean)} {_range(control['wrong_fraction'])}."
        )
    if found.is_judged:
        size, difference = control["mean_size"], control["mean_difference"]
        sentences.append(
            f"Both advantages differ by {plain(found.of_lowest.mean_difference)} on average in the lowest {noun}s and "
            f"by {plain(found.of_highest.mean_difference)} in the highest (random: {plain(difference.mean)}, "
            f"{plain(difference.low)} to {plain(difference.high)}). In the lowest, the estimate has the mean size "
            f"{plain(found.of_lowest.mean_size)} (random: {plain(size.mean)})."
        )
    return [*sentences, *_correlation(diagnosed), *_own_words(diagnosed)]


def notes(diagnosed: DiagnosedRound) -> list[str]:
    """Return what limits the finding."""
    found, noun = diagnosed.found, diagnosed.noun
    sentences = [
        f"This is iteration {diagnosed.iteration} ({FROM_ZERO}) of one run. Neighbouring {noun}s share rewards, "
        f"so that the control describes the choice of {noun}s in this buffer and not another run."
    ]
    if diagnosed.num_unfinished:
        sentences.append(
            f"Left out: {counted(diagnosed.num_unfinished, noun)} of episodes that the end of the buffer cuts, whose "
            "rewards did not all arrive."
        )
    if diagnosed.monte_carlo.bootstrapped:
        sentences.append(
            f"{counted(diagnosed.monte_carlo.bootstrapped, noun)} of {len(found.records):,} belong to episodes that "
            "the end of the buffer or a limit cuts; the critic's value of the last state completes their returns."
        )
    if _follows_bias(diagnosed):
        sentences.append(
            f"The critic's values are far off on average: the mean Monte-Carlo advantage of all {noun}s is "
            f"{plain(found.of_all.mean_monte_carlo)}, and many signs follow that and not the action."
        )
    if diagnosed.num_broken:
        sentences.append(f"{counted(diagnosed.num_broken, noun)} without a finite score are left out.")
    if not diagnosed.trains_policy:
        sentences.append("In this iteration the critic learned alone; the policy did not change.")
    if _follows_rewards(diagnosed):
        sentences.append("The estimated advantages are rewards minus a baseline, too, so that they have the same sign.")
    return sentences


def steps(diagnosed: DiagnosedRound, *, seed: int) -> dict[str, str]:
    """Return how each number was made, by its name."""
    found, noun = diagnosed.found, diagnosed.noun
    unit = "prompts" if isinstance(diagnosed.episodes, TextEpisodes) else "episodes"
    entries = {
        "Scores": f"Influence on {diagnosed.scores.words}. A positive score helps the target to first order.",
        "Monte Carlo": f"{_BASELINES[diagnosed.monte_carlo.baseline].capitalize()}.",
        "Estimate": "The advantage that the update used, before it is normalised"
        + (", averaged over the tokens." if noun == "response" else "."),
        "Wrong sign": f"Of the {noun}s whose two advantages are both different from 0, those with different signs.",
        "Random": f"1,000 draws of {counted(len(found.lowest), noun)} out of {len(found.records):,} without "
        f"replacement, seed {seed}: the mean, and where 95 % of the draws lie.",
        "Spearman": f"Of the score and the product of both advantages; the 95 % interval is from 1,000 resamples of "
        f"whole {unit}, seed {seed}.",
    }
    if noun == "record":
        entries["Discount"] = f"{diagnosed.gamma:g} per step, that of the run."
    return entries


def rows_of_table(diagnosed: DiagnosedRound) -> list[tuple[str, Summary]]:
    """Return titles and numbers of both ends and of all."""
    found = diagnosed.found
    return [("Lowest scores", found.of_lowest), ("Highest scores", found.of_highest), ("All", found.of_all)]


def terminal_lines(diagnosed: DiagnosedRound) -> list[str]:
    """Return the finding for a terminal, each sentence on a line of its own."""
    return [headline(diagnosed), *lead(diagnosed), *notes(diagnosed)]


def _correlation(diagnosed: DiagnosedRound) -> list[str]:
    found = diagnosed.found.correlation
    if found is None:
        return []
    unit = "prompt" if isinstance(diagnosed.episodes, TextEpisodes) else "episode"
    if found.interval is None:
        few = counted(found.clusters, unit)
        return [f"Score and product of both advantages: Spearman {_signed(found.value)}, of {few} without an interval."]
    low, high = found.interval
    is_weak = abs(found.value) < _WEAKEST
    which = "rises with" if low > 0 else "falls with" if high < 0 else "shows no relation to"
    which = "is nearly unrelated to" if is_weak and not low <= 0 <= high else which
    return [
        f"Over all {len(diagnosed.found.records):,} {diagnosed.noun}s, the score {which} the product of both "
        f"advantages: Spearman {_signed(found.value)} ({_signed(low)} to {_signed(high)})."
    ]


_WEAKEST = 0.1
"""Of a correlation, below which a direction of thousands of records is certain, and of no use."""


def _own_words(diagnosed: DiagnosedRound) -> list[str]:
    """Return what the run did with the lowest; of responses, also their labels and lengths."""
    found = diagnosed.found
    sentences = []
    if (diagnosed.weights == 0).any():
        low, high = ((diagnosed.weights[rows] == 0).mean() for rows in (found.lowest, found.highest))
        sentences.append(
            f"The run dropped {_percent(float(low))} of the lowest and {_percent(float(high))} of the highest."
        )
    if isinstance(diagnosed.episodes, TextEpisodes):
        lengths = lengths_of(diagnosed)
        sentences.append(
            f"Mean length in tokens: lowest {plain(lengths['lowest'])}, highest {plain(lengths['highest'])}, all "
            f"{plain(lengths['all'])}."
        )
    return sentences


def _label_words(diagnosed: DiagnosedRound) -> list[str]:
    outside = [one for one in diagnosed.shares if not one.control.low <= one.lowest <= one.control.high]
    if not diagnosed.shares:
        return []
    if not outside:
        return ["The labels of the lowest occur as often among random responses."]
    parts = [
        f"{one.label.replace('_', ' ')} {_percent(one.lowest)} (random {_percent(one.control.mean)} "
        f"{_range(one.control)})"
        for one in outside
    ]
    return [f"Labels of the lowest that differ from random responses: {'; '.join(parts)}."]


def _follows_bias(diagnosed: DiagnosedRound) -> bool:
    """Return whether the mean of the Monte-Carlo advantages, 0 for a right critic, is large beside their spread."""
    true = diagnosed.found.records.monte_carlo
    return diagnosed.monte_carlo.baseline == "critic" and bool(abs(true.mean()) > true.std() / 2)


def _follows_rewards(diagnosed: DiagnosedRound) -> bool:
    records = diagnosed.found.records
    is_text = isinstance(diagnosed.episodes, TextEpisodes)
    return is_text and bool(np.all(np.sign(records.estimates) == np.sign(records.monte_carlo)))


def _percent(fraction: float | None) -> str:
    return f"{percent(fraction, digits=0)} %"


def _range(control: Control) -> str:
    return f"[{percent(control.low, digits=0)}, {percent(control.high, digits=0)}]"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def captions(diagnosed: DiagnosedRound) -> dict[str, str]:
    """Return what to see in each figure, by its name."""
    noun, count = diagnosed.noun, len(diagnosed.found.lowest)
    return {
        "maps": f"An arrow is an action in a field; its number and size count the {noun}s. Green: the estimate "
        "calls the action better than usual, purple: worse. A cross behind a number marks an arrow that Monte Carlo "
        "judges the other way. Moves into a wall count, too.",
        "advantages": f"Fractions of the {noun}s by their estimated advantage. The outermost bars include everything "
        "beyond them.",
        "both": "In the shaded quarters the two advantages have different signs. Points at the edge are outside.",
        "difference": "Absolute difference of both advantages: means of neighbouring ranks with 95 % intervals. "
        f"Shaded: the {count} lowest and highest.",
        "product": "Product of both advantages: below 0 the estimate has the wrong sign on average. Shaded as above.",
    }
