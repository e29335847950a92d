"""Weights that are NaN or infinite are named, the first of them and how many there are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ippo_lightning.records.finite_weights import broken_weights, explain_broken_output, require_finite_weights


def weights(**changes: float) -> dict[str, torch.Tensor]:
    found = {name: torch.ones(2, 3, dtype=torch.bfloat16) for name in ("first", "second", "third")}
    for name, value in changes.items():
        found[name][1, 2] = value
    return found


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"second": math.nan}, "weights: second contains NaN before sampling; an earlier optimizer step broke them"),
        ({"third": -math.inf}, "weights: third contains infinity before sampling; "),
        ({"second": math.inf, "third": math.nan}, "weights: second and 1 more of 3 weights contain infinity before"),
    ],
)
def test_the_first_broken_weight_is_named(changes: dict[str, float], line: str) -> None:
    with pytest.raises(FloatingPointError) as caught:
        require_finite_weights(weights(**changes), before="sampling")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_finite_weights_pass() -> None:
    require_finite_weights(weights(first=3e38), before="sampling")
    require_finite_weights({}, before="sampling")
    assert broken_weights({"empty": torch.zeros(0)}) == []


def test_a_model_with_finite_weights_and_broken_outputs_has_its_largest_weight_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model[1].weight[0, 2] = -1e30
    assert explain_broken_output(model) == "the weights are finite, the largest is 1e+30 in 1.weight"
    with torch.no_grad():
        model[0].bias[1] = math.nan
    assert explain_broken_output(model).startswith("weights: 0.bias contains NaN; ")
