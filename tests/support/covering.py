"""Few cases in which each pair of values of two options occurs together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

Case = dict[str, str]
Pair = frozenset[tuple[str, str]]
_REPAIRS = 400
"""Random cases that are tried for a pair of which one changed option makes no allowed case."""


def covering_cases(options: Mapping[str, Sequence[str]], *, allowed: Callable[[Case], bool]) -> list[Case]:
    """Return cases that contain each pair of values of two options, greedily few and always the same ones.

    Args:
        options: name to its values; the first values of all options together are an allowed case.
        allowed: False for a case that is left out, and with it pairs that no allowed case is found for.
    """
    draw = random.Random(0)
    # A list and not a set, whose order would change from run to run.
    waiting: list[Pair] = [
        frozenset({(one, first), (other, second)})
        for one, other in itertools.combinations(options, 2)
        for first in options[one]
        for second in options[other]
    ]
    open_pairs, cases = set(waiting), []
    for pair in waiting:
        if pair not in open_pairs:
            continue
        case = next((case for case in _with_pair(options, dict(pair), draw) if allowed(case)), None)
        if case is not None:
            _fill(case, options, open_pairs, fixed=dict(pair).keys(), allowed=allowed, draw=draw)
            cases.append(case)
            open_pairs -= pairs_of(case)
    return cases


def pairs_of(case: Mapping[str, str]) -> set[Pair]:
    """Return all pairs of values that a case contains."""
    return {frozenset(pair) for pair in itertools.combinations(case.items(), 2)}


def _with_pair(options: Mapping[str, Sequence[str]], pair: Case, draw: random.Random) -> Iterator[Case]:
    """Yield cases with a pair of values: all others the first ones, then one other changed, then random ones."""
    first = {name: values[0] for name, values in options.items()} | pair
    yield first
    for name, values in options.items():
        for value in values:
            if name not in pair:
                yield first | {name: value}
    for _ in range(_REPAIRS):
        others = sorted(options.keys() - pair.keys())
        chosen = draw.sample(others, min(4, len(others)))
        yield first | {name: draw.choice(options[name]) for name in chosen}


def _fill(
    case: Case,
    options: Mapping[str, Sequence[str]],
    open_pairs: set[Pair],
    *,
    fixed: object,
    allowed: Callable[[Case], bool],
    draw: random.Random,
) -> None:
    """Give the other options the values that bring the most open pairs, as far as the case stays allowed."""
    for name in draw.sample(list(options), len(options)):
        if name in fixed:  # type: ignore[operator]
            continue
        gains = {value: len(open_pairs & _pairs_with(case, name, value)) for value in options[name]}
        for value in sorted(gains, key=lambda value: (-gains[value], draw.random())):
            if allowed(case | {name: value}):
                case[name] = value
                break


def _pairs_with(case: Case, name: str, value: str) -> set[Pair]:
    return {frozenset({(name, value), pair}) for pair in case.items() if pair[0] != name}
