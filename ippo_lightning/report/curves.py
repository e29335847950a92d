"""The curves of training: which number each one shows, how it is drawn, and where it started."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes

from ippo_lightning.report.canvas import (
    INK,
    MUTED,
    canvas,
    draw_curve,
    height_of_labels,
    iteration_axis,
    label_ends,
    method_colours,
    percent_axis,
)
from ippo_lightning.report.display import in_words, percent, plain
from ippo_lightning.report.misleading import dropped_auc_by_iteration
from ippo_lightning.report.records import Comparison, Run
from ippo_lightning.report.score_axis import draw_powers, linear_range
from ippo_lightning.report.wording import wording


@dataclass(frozen=True)
class Curve:
    """One number over the iterations."""

    title: str
    caption: str
    read: Callable[[Run], Mapping[int, float]]
    axis: Literal["percent", "from zero", "free"] = "free"
    """`free` shows where the values are; `from zero` begins at zero, so that a ratio looks like what it is."""


def _history(key: str, *, of_texts: bool = False) -> Callable[[Run], Mapping[int, float]]:
    """Return a reader of a number; one `of_texts` is constant in environments, which have no prompts."""
    return lambda run: {} if of_texts and run.is_control else counted_from_one(run.series(key))


def counted_from_one(series: Mapping[int, float]) -> dict[int, float]:
    """Return a series of the history as the progress of a run counts it: an evaluation at 1 is after iteration 1."""
    return {iteration + 1: value for iteration, value in series.items()}


def _validation(metric: str) -> Callable[[Run], Mapping[int, float]]:
    return lambda run: run.validation(metric)


PART_FIGURES = "reward_part_"
_PART_NAME = "[A-Za-z0-9_.-]{1,40}"
PART_FIGURE = re.compile(rf"(?:validation_)?{PART_FIGURES}{_PART_NAME}")
"""Name of the figure of a part."""
CURVES: Mapping[str, Curve] = {
    "reward": Curve(
        "Mean reward of the sampled episodes",
        "Output of the reward function, without the KL penalty. It should rise.",
        _history("rollout/reward_mean", of_texts=True),
    ),
    "episode_return": Curve(
        "Return of the training episodes",
        "Sum of the rewards of an episode, mean over the newest episodes. It should rise.",
        _history("rollout/episode_return"),
    ),
    "validation_return": Curve(
        "Return of the validation episodes",
        "Sum of the rewards of an episode, in the evaluations during training. It should rise.",
        _validation("episode_return"),
    ),
    "episode_length": Curve(
        "Length of the training episodes, steps",
        "Mean over the newest episodes.",
        _history("rollout/episode_length"),
        "from zero",
    ),
    "validation_reward": Curve(
        "Mean reward on validation prompts",
        "Output of the reward function on responses to validation prompts. It should rise.",
        _validation("reward"),
    ),
    "exact_match": Curve(
        "Exact match on validation prompts",
        "Fraction of right responses to validation prompts. It should rise.",
        _validation("exact_match"),
        "percent",
    ),
    "unfaithful_fraction": Curve(
        "Unfaithful fraction on validation prompts",
        "Fraction of the right answers to validation prompts whose steps are wrong or missing. It should fall.",
        _validation("unfaithful_fraction"),
        "percent",
    ),
    "sft_loss": Curve(
        "Loss of the demonstrations, nats per token",
        "Mean negative log-likelihood of a response token in supervised training. It should fall.",
        _history("sft/loss"),
    ),
    "kl": Curve(
        "KL to the reference, nats per response",
        "How far the policy has moved from its reference. A slow rise is normal; a jump is not.",
        _history("rollout/kl", of_texts=True),
    ),
    "entropy": Curve(
        "Entropy of the policy, nats per token",
        "How varied the samples are. It falls in training; near zero the policy explores nothing.",
        _history("update/entropy"),
        "from zero",
    ),
    "response_tokens": Curve(
        "Response length, tokens",
        "Mean tokens of a response, with its end token. A jump often means that the reward is exploited.",
        _history("rollout/response_tokens_mean", of_texts=True),
        "from zero",
    ),
    "clip_fraction": Curve(
        "Clip fraction of the update",
        "Fraction of the tokens whose ratio is clipped. A high one means that an update moves the policy too far.",
        _history("update/clip_fraction"),
        "percent",
    ),
    "gradient_norm": Curve(
        "Gradient norm of the update",
        "Before clipping, mean over the steps of an iteration. It should stay in one order of magnitude.",
        _history("update/gradient_norm"),
        "from zero",
    ),
    "kept_fraction": Curve(
        "Episodes kept for the update",
        "Fraction of the sampled episodes that the update used. Without selection all are used.",
        _history("update/kept_fraction"),
        "percent",
    ),
    "dropped_auc": Curve(
        "Recognised: AUC of dropping",
        "How well the dropped episodes are those whose update misleads, by the labels of the grader: the mean of "
        "recall and specificity. 50 % is chance.",
        lambda run: counted_from_one(dropped_auc_by_iteration(run)),
        "percent",
    ),
    "effective_sample_size": Curve(
        "Effective sample size, episodes",
        "The weights are worth this many equally weighted episodes: "
        "(sum\N{NO-BREAK SPACE}w)² / sum\N{NO-BREAK SPACE}w².",
        _history("influence/effective_sample_size"),
        "from zero",
    ),
    "iteration_seconds": Curve(
        "Seconds per iteration",
        "Wall-clock time of each iteration. Other work on the same cores or GPU is part of it.",
        _history("time/iteration_seconds"),
        "from zero",
    ),
}
"""By the name of the figure, in the order of the report."""


_PART = re.compile(rf"(?:rollout/)?reward/({_PART_NAME})")
_MOST_PARTS = 32


def part_curves(comparison: Comparison) -> dict[str, Curve]:
    """Return a curve for each named part of a reward, of the episodes and of the validation prompts, by figure name.

    Args:
        comparison: from `read_comparison`.
    """
    runs = [run for method in comparison.methods.values() for run in method.finished]
    # The first and the last row: a run has the same parts throughout, and a log may have any number of rows.
    rows = [row for run in runs for log in (run.history, run.evaluations) for row in (*log[:1], *log[-1:])]
    keys = {key: found[1] for row in rows for key in row if (found := _PART.fullmatch(key)) is not None}
    parts = sorted(set(keys.values()))[:_MOST_PARTS]
    curves = {}
    for part in parts:
        for key, where, read in (
            (f"rollout/reward/{part}", "of the sampled episodes", _history),
            (f"reward/{part}", "on validation prompts", _validation),
        ):
            if key in keys:
                name = f"{PART_FIGURES}{part}" if key.startswith("rollout/") else f"validation_{PART_FIGURES}{part}"
                caption = "Mean of this part, with its weight. The parts add up to the reward."
                curves[name] = Curve(f"Reward {part} {where}", caption, read(key))
    return curves


def drawn_series(comparison: Comparison, curve: Curve) -> dict[str, list[Mapping[int, float]]]:
    """Return a number by method, seed and iteration, of the methods that have it at two iterations: a dot is no curve.

    Args:
        comparison: the runs.
        curve: the number.
    """
    series = {name: [curve.read(run) for run in method.finished] for name, method in comparison.methods.items()}
    return {name: found for name, found in series.items() if max(map(len, found), default=0) > 1}


def is_constant(series: Mapping[str, Sequence[Mapping[int, float]]]) -> bool:
    """Return whether the number of each method is the same at all iterations and seeds.

    Args:
        series: from `drawn_series`.
    """
    return all(len({value for one in found for value in one.values()}) == 1 for found in series.values())


def constant_words(comparison: Comparison) -> list[str]:
    """Return each number that no figure shows because it never changes, with its value, in words.

    Args:
        comparison: the runs.
    """
    words = wording(comparison)
    found = []
    for curve in {**CURVES, **part_curves(comparison)}.values():
        series = drawn_series(comparison, curve)
        if series and is_constant(series):
            values = {name: next(iter(next(filter(None, one)).values())) for name, one in series.items()}
            found.append(f"{words(curve.title)}: {_by_value(values, comparison, curve)}")
    return found


def starts_of(series: Mapping[str, Sequence[Mapping[int, float]]]) -> dict[str, tuple[int, float]]:
    """Return where each method started: its first iteration, and the mean there over the seeds that have it.

    Args:
        series: method name to a number by iteration for each seed.

    Returns:
        Method name to iteration and mean; without methods that have no number.

    Example:
        >>> starts_of({"ppo": [{0: 1.0, 5: 9.0}, {0: 3.0}], "sft": [{}]})
        {'ppo': (0, 2.0)}
    """
    found: dict[str, tuple[int, float]] = {}
    for name, seeds in series.items():
        first = min((min(one) for one in seeds if one), default=None)
        if first is not None:
            values = [one[first] for one in seeds if first in one]
            found[name] = (first, sum(values) / len(values))
    return found


def plot_curve(comparison: Comparison, path: Path, curve: Curve) -> str | None:
    """Draw one curve per method, and where it started as a dotted line.

    Args:
        comparison: from `read_comparison`.
        path: the PNG file to write.
        curve: what to draw.

    Returns:
        The figure in words, for the alternative text; None if no run recorded the number at two iterations, or if it
        never changes.
    """
    series = drawn_series(comparison, curve)
    if not series or is_constant(series):
        return None
    words = wording(comparison)
    colours = method_colours(comparison)
    # Of every seed and not of the means, so that the bands lie inside the axis.
    values = [value for found in series.values() for one in found for value in one.values()]
    starts = starts_of(series)
    ends: list[tuple[str, str, float, float]] = []
    with canvas(path, height=height_of_labels(len(series))) as axes:
        panel = axes[0][0]
        for name, found in series.items():
            end = draw_curve(panel, found, colour=colours[name])
            if end is not None:
                ends.append((name, colours[name], *end))
        _set_axis(panel, curve, values)
        panel.set_title(words(curve.title))
        panel.set_xlabel("iteration")
        iteration_axis(panel, (iteration for found in series.values() for one in found for iteration in one), most=7)
        _draw_starts(panel, starts, colours)
        label_ends(panel, _merged(ends, comparison))
    first = {name: value for name, (_, value) in starts.items()}
    last = {name: height for name, _, _, height in ends}
    return (
        f"{words(curve.title)}, by iteration. At the start: {_listed(first, comparison, curve)}. "
        f"At the end: {_listed(last, comparison, curve)}."
    )


def _set_axis(panel: Axes, curve: Curve, values: Sequence[float]) -> None:
    linear = linear_range(values)
    if curve.axis == "percent":
        percent_axis(panel, values)
    elif linear is not None:
        draw_powers(panel, "y", linear)
    elif curve.axis == "from zero":
        # 1e-9, because matplotlib warns of equal limits.
        panel.set_ylim(min(0.0, 1.08 * min(values)), 1.08 * max([*values, 1e-9]))


def _draw_starts(panel: Axes, starts: Mapping[str, tuple[int, float]], colours: Mapping[str, str]) -> None:
    """Draw a dotted line at each start; methods that start at one point share a line in the colour of text."""
    points: dict[tuple[int, float], list[str]] = {}
    for name, start in starts.items():
        points.setdefault(start, []).append(name)
    for (_, height), names in points.items():
        is_shared = len(names) > 1 or len(starts) == 1
        colour = MUTED if is_shared else colours[names[0]]
        panel.axhline(height, color=colour, linewidth=1.3, linestyle=(0, (1, 2)), zorder=1)
    iterations = {iteration for iteration, _ in points}
    word = "start" if iterations <= {0, 1} else f"iteration {min(iterations)}" if len(iterations) == 1 else "first"
    panel.plot([], [], color=MUTED, linewidth=1.3, linestyle=(0, (1, 2)), label=word)
    # Below the axes, beside the name of the axis: inside, it would cover a curve.
    panel.legend(loc="upper right", bbox_to_anchor=(1.0, -0.08), fontsize=9, borderaxespad=0.0)


def _by_value(values: Mapping[str, float], comparison: Comparison, curve: Curve) -> str:
    """Return values in words, each once; the names of methods only if the values differ."""
    show, unit = (percent, " %") if curve.axis == "percent" else (plain, "")
    titles: dict[str, list[str]] = {}
    for name, value in values.items():
        titles.setdefault(f"{show(value)}{unit}", []).append(comparison.methods[name].title)
    if len(titles) == 1:
        return next(iter(titles))
    return ", ".join(f"{shown} ({in_words(names)})" for shown, names in titles.items())


def _listed(values: Mapping[str, float], comparison: Comparison, curve: Curve) -> str:
    show, unit = (percent, " %") if curve.axis == "percent" else (plain, "")
    return ", ".join(f"{comparison.methods[name].title} {show(value)}{unit}" for name, value in values.items())


def _merged(ends: list[tuple[str, str, float, float]], comparison: Comparison) -> list[tuple[str, str, float, float]]:
    """Give curves that end in exactly the same point one common label, in the colour of text."""
    # `label_ends` moves labels apart. Two at one point would look like curves that end in different points.
    merged: list[tuple[str, str, float, float]] = []
    # `groupby` joins neighbours only, so the ends are sorted first.
    for point, group in groupby(sorted(ends, key=lambda end: end[2:]), key=lambda end: end[2:]):
        members = list(group)
        text = ", ".join(comparison.methods[name].title for name, *_ in members)
        merged.append((text, members[0][1] if len(members) == 1 else INK, *point))
    return merged
