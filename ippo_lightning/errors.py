"""The exception for a mistake of the user, and the checks of a number's range and of a word's choices."""

from __future__ import annotations

import numbers
from collections.abc import Sequence


class UserError(ValueError):
    """A setting, file or function of the user that is wrong.

    The message is one line. It names the field, the value received and what would be right. The command line prints
    it and exits with code 2, without a traceback.
    """


def require_range(
    name: str,
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    integer: bool = False,
) -> None:
    """Refuse a number outside its range; NaN, booleans and text are outside every range.

    Infinity is inside a range without an upper bound; pass `below=math.inf` to refuse it.

    Args:
        name: the field as the user writes it, for example "optimizer.lr".
        value: what the user gave.
        at_least: lowest value allowed.
        at_most: highest value allowed.
        above: the value must be greater than this.
        below: the value must be less than this.
        integer: accept integers only.

    Raises:
        UserError: the value is outside the range.

    Example:
        >>> require_range("optimizer.lr", 0.0, above=0)
        Traceback (most recent call last):
        ...
        ippo_lightning.errors.UserError: optimizer.lr: 0.0 is out of range; expected a number > 0
    """
    # bool is a subclass of int: without the second test, "num_epochs: true" would train for one epoch
    is_number = isinstance(value, numbers.Integral if integer else numbers.Real) and not isinstance(value, bool)
    if is_number and _inside(value, at_least=at_least, at_most=at_most, above=above, below=below):
        return
    limits = {">=": at_least, ">": above, "<=": at_most, "<": below}
    bounds = " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None)
    shown = value if is_number else repr(value)
    kind = "an integer" if integer else "a number"
    raise UserError(f"{name}: {shown} is out of range; expected {kind} {bounds}".rstrip())


def require_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a word that is not one of the choices.

    Args:
        field: as the user writes it, for example "update.denominator".
        value: what the user gave.
        choices: the words allowed.

    Raises:
        UserError: the value is not one of them.

    Example:
        >>> require_choice("update.denominator", "al", ("kept", "all"))
        Traceback (most recent call last):
        ...
        ippo_lightning.errors.UserError: update.denominator: 'al' is unknown; expected one of kept, all
    """
    if value not in choices:
        raise UserError(f"{field}: {value!r} is unknown; expected one of {', '.join(choices)}")


def _inside(
    value: float, *, at_least: float | None, at_most: float | None, above: float | None, below: float | None
) -> bool:
    # every comparison with NaN is false, so only value == value refuses NaN where no bound is set
    return (
        value == value
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
