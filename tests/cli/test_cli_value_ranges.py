"""Ranges that are read from the source are those that the constructors themselves check."""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from typing import Any

import pytest

from ippo_lightning.cli.short_names import short_names
from ippo_lightning.cli.simple_types import options
from ippo_lightning.cli.sources import definition, signature
from ippo_lightning.cli.value_ranges import check_range
from ippo_lightning.errors import UserError

INTEGERS = (-1, 0, 1, 2, 10**6)
NUMBERS = (*INTEGERS, 0.5, 1.5, -0.5, math.nan, math.inf)
# what a class cannot be made without, as a YAML gives it
REQUIRED: dict[str, dict[str, Any]] = {
    "TextDataModule": {"task": "arithmetic"},
    "AdaptiveKLController": {"target": 0.1},
}
CLASSES = (
    "AdaptiveKLController",
    "ArithmeticTask",
    "ClippedLoss",
    "CompletionsTable",
    "EpisodeFrames",
    "EpisodeLog",
    "FixedKLController",
    "GAE",
    "GSM8KTask",
    "GainStopping",
    "InfluenceFilter",
    "IntrinsicStopping",
    "LoraSettings",
    "OptimizerSettings",
    "Random",
    "ReturnOfBuffer",
    "SamplingSettings",
    "ScoringSettings",
    "TextDataModule",
    "UpdateSettings",
    "ValueLoss",
)
HIGHEST = {"InfluenceFilter": ("min_keep", "max_weight", "power", "warmup_iterations", "every_n_iterations")}
"""Arguments whose range is checked in another class or function, which the reader must follow."""


def path_of(name: str) -> str:
    (path,) = short_names().get(name) or (f"ippo_lightning.engine.{name}",)
    return path


def refusal(function: Any, *arguments: Any, **named: Any) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*arguments, **named)
        except UserError as error:
            return str(error)
    return None


@pytest.mark.parametrize("name", CLASSES)
def test_a_value_is_refused_with_the_words_of_the_constructor(name: str) -> None:
    path = path_of(name)
    module, _, last = path.rpartition(".")
    real, found = getattr(import_module(module), last), definition(path)
    assert found is not None
    refused = set()
    for argument, parameter in signature(found).parameters.items():
        kinds = {option.kind for option in options(parameter.annotation, parameter.source)}
        for value in NUMBERS if "float" in kinds else INTEGERS if "int" in kinds else ():
            # where the annotation has no other number the parser makes a float of an integer
            given = float(value) if "int" not in kinds else value
            wanted = refusal(real, **{**REQUIRED.get(name, {}), argument: given})
            assert refusal(check_range, found, {**REQUIRED.get(name, {}), argument: value}) == wanted, (argument, value)
            refused |= {argument} if wanted else set()
    assert refused.issuperset(HIGHEST.get(name, ()))
    assert refused


def test_what_follows_a_return_that_may_happen_is_left_to_the_constructor() -> None:
    found = definition(path_of("InfluenceFilter"))
    assert found is not None
    assert refusal(check_range, found, {"rule": {"class_path": "my.Rule"}, "power": -1.0}) is None
    assert refusal(check_range, found, {"rule": "influence", "power": -1.0}) is not None
