"""A number outside its range is refused in one line that names the field, the value and the range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError, require_choice, require_range


@pytest.mark.parametrize(
    ("value", "limits", "expected"),
    [
        (-0.5, {"at_least": 0}, "a number >= 0"),
        (0, {"at_least": 1, "integer": True}, "an integer >= 1"),
        (0.0, {"above": 0}, "a number > 0"),
        (1.5, {"at_least": 0, "at_most": 1}, "a number >= 0 and <= 1"),
        (0.0, {"above": 0, "at_most": 1}, "a number > 0 and <= 1"),
        (1.0, {"at_least": 0, "below": 1}, "a number >= 0 and < 1"),
        (math.inf, {"above": 0, "below": math.inf}, "a number > 0 and < inf"),
        (math.nan, {"at_least": 0}, "a number >= 0"),
        (math.nan, {}, "a number"),
        (2.5, {"at_least": 1, "integer": True}, "an integer >= 1"),
        (True, {"at_least": 1, "integer": True}, "an integer >= 1"),
        ("1e-4", {"above": 0}, "a number > 0"),
        (None, {"above": 0}, "a number > 0"),
    ],
)
def test_a_number_outside_the_range_is_refused(value: Any, limits: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        require_range("room.field", value, **limits)
    shown = repr(value) if isinstance(value, str) else str(value)
    assert str(caught.value) == f"room.field: {shown} is out of range; expected {expected}"


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (0, {"at_least": 0}),
        (1, {"at_least": 0, "at_most": 1}),
        (1e-9, {"above": 0, "below": 1}),
        (math.inf, {"above": 0}),
        (np.float32(0.5), {"at_least": 0, "at_most": 1}),
        (np.int64(3), {"at_least": 1, "integer": True}),
        (-4.0, {}),
    ],
)
def test_a_number_inside_the_range_is_accepted(value: float, limits: dict[str, Any]) -> None:
    require_range("room.field", value, **limits)


def test_a_word_that_is_no_choice_is_refused_with_the_choices() -> None:
    require_choice("room.field", "kept", ("kept", "all"))
    with pytest.raises(UserError, match=r"^room\.field: 'al' is unknown; expected one of kept, all$"):
        require_choice("room.field", "al", ("kept", "all"))


@pytest.mark.parametrize("name", ["loss_reduction", "denominator", "steps_after_filtering", "on_nonfinite"])
def test_a_misspelt_word_in_python_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^update\.{name}: 'typo' is unknown"):
        UpdateSettings(**{name: "typo"})
