"""The numbers of an evaluation from its items, with intervals over prompts, and differences of two evaluations.

Each number is a sum over prompts divided by another one, so a resample of the prompts has the number of its own sums.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TypedDict

import numpy as np

from ippo_lightning.errors import UserError
from ippo_lightning.metrics import majority_vote, pass_at_k
from ippo_lightning.metrics.labels import KNOWN_LABELS
from ippo_lightning.metrics.rewards import MAX_MEANS, REWARD
from ippo_lightning.report.ratio_intervals import Ratio, ratio_interval
from ippo_lightning.run.items import Item

MOST_LABELS = 64
"""Different labels that get a number."""


class Number(TypedDict):
    """A number and its 95 % interval, see `ratio_interval`; None for 0 / 0."""

    value: float | None
    interval: list[float] | None


class Difference(Number):
    """One evaluation minus another in one number, over the prompts of both."""

    prompts: int


Ratios = Mapping[str, Ratio]
"""By the name of the number."""


def default_ks(samples: int) -> list[int]:
    """Return the k of pass@k: 1, 2, 4, ... below the number of samples, and that number.

    Example:
        >>> default_ks(6)
        [1, 2, 4, 6]
    """
    return [*(2**power for power in range((samples - 1).bit_length())), samples]


def check_ks(ks: Sequence[int], *, samples: int) -> None:
    """Refuse a k of pass@k that is out of its range.

    Raises:
        UserError: one is below 1 or above the number of samples, or comes twice.
    """
    for k in ks:
        if not 1 <= k <= samples:
            raise UserError(f"k: {k} is out of range with {samples} samples per prompt; expected 1 to {samples}")
    if len(set(ks)) < len(ks) or not ks:
        raise UserError(f"k: {list(ks)} is wrong; expected different integers from 1 to {samples}")


def by_prompt(items: Sequence[Item]) -> list[list[Item]]:
    """Return the items of each prompt.

    Args:
        items: those to one prompt stand next to each other.
    """
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item["prompt_index"], []).append(item)
    return list(groups.values())


def ratios(groups: Sequence[Sequence[Item]], *, ks: Sequence[int]) -> dict[str, Ratio]:
    """Return the numbers of an evaluation as sums over prompts.

    With a grader `exact_match`, `majority_vote` (if there are answers and references), `pass_at_<k>`,
    `unfaithful_fraction` (if the labels describe reasoning) and `label/<name>`. `reward` if it is measured, and
    `reward/<name>` of each of its parts. Always `response_tokens_mean` and `truncated_fraction`.

    Args:
        groups: of each prompt its items, the same number for each.
        ks: of pass@k.
    """
    samples = [len(group) for group in groups]
    found: dict[str, Ratio] = {}
    is_graded = any(item["correct"] is not None for group in groups for item in group)
    if is_graded:
        found = _graded(groups, samples, ks)
    if not is_graded or any(item["reward"] is not None for group in groups for item in group):
        found |= _rewards(groups)
    found["response_tokens_mean"] = _ratio(
        (sum(item["response_tokens"] for item in group) for group in groups), samples, is_fraction=False
    )
    found["truncated_fraction"] = _ratio((sum(item["truncated"] for item in group) for group in groups), samples)
    return {**found, **_labels(groups, samples)}


def _graded(groups: Sequence[Sequence[Item]], samples: Sequence[int], ks: Sequence[int]) -> dict[str, Ratio]:
    right = [sum(bool(item["correct"]) for item in group) for group in groups]
    found = {"exact_match": _ratio(right, samples)}
    votes = [
        None if reference is None else majority_vote(answers=[item["answer"] for item in group], reference=reference)
        for group in groups
        for reference in [group[0]["reference"]]
    ]
    # A grader that reports no answers, which a right response without one shows, gives no votes.
    is_reported = all(item["answer"] is not None or not item["correct"] for group in groups for item in group)
    if is_reported and any(vote is not None for vote in votes):
        found["majority_vote"] = _ratio((vote or 0.0 for vote in votes), (vote is not None for vote in votes))
    for k in ks:
        passes = [
            pass_at_k(num_samples=count, num_correct=hits, k=k) for count, hits in zip(samples, right, strict=True)
        ]
        found[f"pass_at_{k}"] = _ratio(passes, [1] * len(groups))
    if any(item["faithful"] is not None for group in groups for item in group):
        known = [[item["faithful"] for item in group if item["correct"]] for group in groups]
        unfaithful = (sum(value is False for value in group) for group in known)
        found["unfaithful_fraction"] = _ratio(unfaithful, (sum(v is not None for v in group) for group in known))
    return found


def _rewards(groups: Sequence[Sequence[Item]]) -> dict[str, Ratio]:
    """Return the mean of the reward and of each of its parts, where they are finite."""
    parts = dict.fromkeys(part for group in groups for item in group for part in item["reward_parts"])
    found = {REWARD: [[item["reward"] for item in group] for group in groups]}
    for part in islice(parts, MAX_MEANS - 1):
        found[f"{REWARD}/{part}"] = [[item["reward_parts"].get(part) for item in group] for group in groups]
    return {name: _mean_of_finite(values) for name, values in found.items()}


def _mean_of_finite(groups: Sequence[Sequence[float | None]]) -> Ratio:
    finite = [[value for value in group if value is not None and math.isfinite(value)] for group in groups]
    return _ratio(map(math.fsum, finite), map(len, finite), is_fraction=False)


def _labels(groups: Sequence[Sequence[Item]], samples: Sequence[int]) -> dict[str, Ratio]:
    counts = [Counter(item["label"] for item in group if item["label"] is not None) for group in groups]
    total: Counter[str] = sum(counts, Counter())
    kept = sorted(total, key=lambda label: (-total[label], label))[:MOST_LABELS]
    # This library's own labels have an entry also at 0, as in the log of a run.
    names = list(KNOWN_LABELS) if kept and set(kept) <= set(KNOWN_LABELS) else sorted(kept)
    return {f"label/{label}": _ratio((count[label] for count in counts), samples) for label in names}


def numbers(found: Ratios) -> dict[str, Number]:
    """Return each number with its interval.

    Args:
        found: see `ratios`.
    """
    return {name: Number(value=ratio.value, interval=ratio_interval(ratio)) for name, ratio in found.items()}


def common_places(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return the places of the prompts that two evaluations share; a prompt that comes twice is paired twice.

    Args:
        first: the prompts of one evaluation, each with its right answer: with another one it is another problem.
        second: those of the other one.
    """
    places = dict(zip(_occurrences(first), range(len(first)), strict=True))
    return [(places[key], place) for place, key in enumerate(_occurrences(second)) if key in places]


def _occurrences(prompts: Sequence[Hashable]) -> list[tuple[Hashable, int]]:
    seen: Counter[Hashable] = Counter()
    keys = []
    for prompt in prompts:
        keys.append((prompt, seen[prompt]))
        seen[prompt] += 1
    return keys


def differences(first: Ratios, second: Ratios, *, pairs: Sequence[tuple[int, int]]) -> dict[str, Difference]:
    """Return the second evaluation minus the first one in each number of both, over the same prompts.

    The interval resamples the prompts, and takes of each resample the numbers of both evaluations.

    Args:
        first: see `ratios`.
        second: as well.
        pairs: see `common_places`.
    """
    found = {}
    for name in (name for name in second if name in first and pairs):
        one = first[name].of([place for place, _ in pairs])
        other = second[name].of([place for _, place in pairs])
        before, after = one.value, other.value
        value = None if before is None or after is None else after - before
        interval = ratio_interval(other, minus=one)
        found[name] = Difference(value=value, interval=interval, prompts=len(pairs))
    return found


def _ratio(part: Iterable[float], whole: Iterable[float], *, is_fraction: bool = True) -> Ratio:
    parts, wholes = (np.array([float(value) for value in values], dtype=np.float64) for values in (part, whole))
    return Ratio(parts, wholes, is_fraction)
