"""What a trace found, in sentences: for its page and for the terminal."""

from __future__ import annotations

from statistics import median

from ippo_lightning.analysis.pages import FROM_ZERO
from ippo_lightning.analysis.phases import END, FEWEST_ITERATIONS, FEWEST_RISE, LEVEL, PHASES, START
from ippo_lightning.analysis.roughness import FEWEST_ROWS, MOST_ROWS, PERMUTATIONS
from ippo_lightning.analysis.row_passes import EMBEDDINGS
from ippo_lightning.analysis.traced_rounds import Trace, TracedRound
from ippo_lightning.report.display import counted, in_words, plain
from ippo_lightning.storage.untrusted_text import visible_text

_FEW = 8
"""Traced iterations, below which no sentence about phases is made."""


def headline(trace: Trace) -> str:
    """Return one sentence: how much more probable the behaviour became, and whether phases are seen.

    Args:
        trace: of a behaviour.
    """
    first, last = trace.values[0], trace.values[-1]
    verb = "rose" if last > first else "fell" if last < first else "stayed"
    moved = f"The {trace.behaviour.measure} of {trace.behaviour.words} {verb} from {plain(first)} to {plain(last)}"
    if verb == "stayed":
        moved = f"The {trace.behaviour.measure} of {trace.behaviour.words} stayed at {plain(first)}"
    if not trace.phases.rises:
        return f"{moved}; that is too small a rise to look for phases"
    if len(trace.rounds) < _FEW or None in trace.phases.p_values:
        return f"{moved}; these are too few iterations to see phases"
    verb = "shows" if trace.phases.are_seen else "does not show"
    return f"{moved}; the roughness of the scores {verb} three phases"


def lead(trace: Trace) -> list[str]:
    """Return the sentences below the headline.

    Args:
        trace: of a behaviour.
    """
    return [trace.behaviour.origin, *_of_phases(trace), *_of_roughness(trace), _of_records(trace), *_of_top(trace)]


def _of_phases(trace: Trace) -> list[str]:
    phases = trace.phases
    if not phases.rises:
        unit = " nats" if trace.behaviour.measure == "log density" else ""
        return [
            f"It did not rise by {FEWEST_RISE}{unit} or more between the first and the last traced iteration, "
            "so the iterations are not divided."
        ]
    spans = []
    for phase in PHASES:
        own = [one.iteration for one, name in zip(trace.rounds, phases.of_iteration, strict=True) if name == phase]
        if own:
            spans.append(f"{phase} {own[0]} to {own[-1]}" if len(own) > 1 else f"{phase} {own[0]}")
    sentences = [f"By its rise, the iterations are: {', '.join(spans)}."]
    return [*sentences, _comparison(trace)]


def _comparison(trace: Trace) -> str:
    """Return what the roughness of the three parts supports."""
    phases = trace.phases
    known = [f"{name} {plain(value)}" for name, value in zip(PHASES, phases.medians, strict=True) if value is not None]
    if not known:
        return f"No iteration has {FEWEST_ROWS} different positive scores, so there is no roughness."
    medians = f"Median roughness relative to shuffled scores: {', '.join(known)}"
    if phases.p_values == (None, None):
        return f"{medians}. A comparison needs at least {FEWEST_ITERATIONS} iterations in two neighbouring parts."
    parts = []
    for other, p_value in zip((PHASES[0], PHASES[2]), phases.p_values, strict=True):
        if p_value is None:
            parts.append(f"{other} and rising cannot be compared (one has fewer than {FEWEST_ITERATIONS} iterations)")
        else:
            word = "differ" if p_value < LEVEL else "do not differ"
            parts.append(f"{other} and rising {word} (p = {plain(p_value)})")
    return f"{medians}; {in_words(parts)}."


def _of_roughness(trace: Trace) -> list[str]:
    found = [one.roughness for one in trace.rounds if one.roughness is not None]
    if not found:
        return []
    smoother = sum(one.value < one.low for one in found)
    rougher = sum(one.value > one.high for one in found)
    return [
        f"In {smoother} of {counted(len(found), 'iteration')} the scores of neighbours are more alike than shuffled "
        f"ones, and in {rougher} less alike. Chance alone gives about {0.025 * len(found):.2g} of each, because its "
        "interval contains 95 % of the shuffled ones."
    ]


def _of_records(trace: Trace) -> str:
    fractions = [len(one.positive) / max(len(one.scores), 1) for one in trace.rounds]
    return (
        f"{100 * fractions[0]:.0f} % of the records have a positive score in iteration {trace.rounds[0].iteration}, "
        f"{100 * fractions[-1]:.0f} % in iteration {trace.rounds[-1].iteration}; the median is "
        f"{100 * median(fractions):.0f} %."
    )


def _of_top(trace: Trace) -> list[str]:
    """Return in which iterations most top records pushed away from what they contain."""
    usable = [one for one in trace.rounds if len(one.top)]
    if not usable:
        return []
    ends = [usable[0], usable[len(usable) // 2], usable[-1]] if len(usable) > 2 else usable
    shares = [f"{100 * _pushed_away(one):.0f} % in iteration {one.iteration}" for one in ends]
    return [
        f"Among the records with the highest scores (at most {trace.options.top}), those with an advantage below 0 are "
        f"{in_words(shares)}: they made what they contain less probable, and so the behaviour more."
    ]


def _pushed_away(one: TracedRound) -> float:
    """Return the fraction of the top records whose summed advantage is below 0."""
    sums = one.records.advantages.masked_fill(~one.records.mask, 0.0).sum(dim=1)
    return float((sums < 0).double().mean())


def captions(trace: Trace, *, top: int) -> dict[str, str]:
    """Return the captions by figure.

    Args:
        trace: of a behaviour.
        top: records of an iteration in the maps.
    """
    parts = (
        " Background: the three parts by the rise of the curve above. Neighbouring iterations depend on each other, so "
        "the p values are too small."
        if trace.phases.rises
        else ""
    )
    return {
        "curves": (
            "Top: the behaviour at the beginning of each iteration, and after the last one. Middle: the roughness of "
            f"the positive scores; band: 95 % of {PERMUTATIONS} random orders of the same scores. Below the band, "
            f"records that are alike for the final network also have similar scores.{parts}"
        ),
        "maps": (
            f"The {top} records with the highest scores, by field and action. The number at an arrow, and its size, is "
            "the percentage of their summed scores in that iteration. Green: the advantage is above 0, and the record "
            "pulls towards its action. Purple: it is below 0, and the record pushes away from its action, which makes "
            "others more probable. The frame is around the field of the behaviour."
        ),
        "clouds": (
            f"The positive records of each iteration by {EMBEDDINGS['control' if trace.is_control else 'text']} at the "
            "end of the run, on its first two principal axes: points that lie together are alike for the final "
            "network. The darker and larger the point (in the dark mode: the brighter), the higher the score in its "
            "iteration."
        ),
    }


def steps(trace: Trace) -> dict[str, str]:
    """Return how each number was made.

    Args:
        trace: of a behaviour.
    """
    options = trace.options
    sums = {
        "round": "summed over the optimizer steps of the iteration, each at the parameters before it (TracIn)",
        "start": "at the parameters before the update, times the weight in the run",
    }
    capped = any(one.roughness is not None and one.roughness.rows < len(one.positive) for one in trace.rounds)
    drawn = f" Of more than {MOST_ROWS:,} positive records, {MOST_ROWS:,} were drawn." if capped else ""
    temperature = "" if trace.is_control else " at the temperature of sampling"
    return {
        "Target": f"log pi of the behaviour{temperature}; a record with a positive score made it more probable.",
        "Scores": f"Gradient of the record's policy loss times gradient of the target, {sums[options.scores]}.",
        "Iterations": f"{counted(len(options.iterations), 'kept iteration')}, {options.iterations[0]} to "
        f"{options.iterations[-1]}, {FROM_ZERO}; each was scored from its own beginning.",
        "Roughness": "sum w (I - I')^2 / sum w over each positive record and its "
        f"{options.neighbours} nearest neighbours among them; I is the score over the largest one; w = "
        "exp(-d^2 / s^2), d the distance of the embeddings, s its median. Embedding: "
        f"{EMBEDDINGS['control' if trace.is_control else 'text']}, of the network after the last traced "
        f"iteration.{drawn}",
        "Phases": f"rising begins with the last update that starts below {START:.0%} of the whole rise, and ends with "
        f"the last one that starts below {END:.0%} of it. Three phases are seen if the relative roughness "
        f"while rising differs from that before and that after (two-sided Mann-Whitney tests, p < {LEVEL} each, at "
        f"least {FEWEST_ITERATIONS} iterations each). The rule is ours: the paper shows three phases without a rule.",
        "Seed": f"{options.seed}, of the permutations.",
        "Cost": f"{sum(one.seconds for one in trace.rounds):.0f} s for the scores, median "
        f"{plain(median(one.seconds for one in trace.rounds))} s per iteration.",
    }


def terminal_lines(trace: Trace) -> list[str]:
    """Return the summary for the terminal, without control characters.

    Args:
        trace: of a behaviour.
    """
    return [visible_text(line) for line in [headline(trace) + ".", *lead(trace)]]
