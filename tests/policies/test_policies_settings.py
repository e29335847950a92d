"""Settings refuse what cannot work, in one line that names the field, and never change afterwards."""

from __future__ import annotations

import warnings
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.policies import LoraSettings, SamplingSettings


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        (LoraSettings, "r", 0),
        (LoraSettings, "alpha", 0),
        (LoraSettings, "dropout", 1.0),
        (LoraSettings, "dropout", -0.1),
        (LoraSettings, "target_modules", []),
        (SamplingSettings, "num_responses", 0),
        (SamplingSettings, "max_new_tokens", 0),
        (SamplingSettings, "temperature", 0.0),
        (SamplingSettings, "temperature", float("nan")),
        (SamplingSettings, "temperature", float("inf")),
        (SamplingSettings, "top_p", 0.0),
        (SamplingSettings, "top_p", 1.1),
        (SamplingSettings, "stop_tokens", [""]),
    ],
)
def test_a_value_out_of_range_is_named(settings: type, field: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        settings(**{field: value})
    message = str(caught.value)
    assert f".{field}: " in message
    assert str(value) in message
    assert "\n" not in message


@pytest.mark.parametrize(("settings", "field"), [(LoraSettings, "r"), (SamplingSettings, "num_responses")])
def test_settings_take_keywords_only_and_do_not_change(settings: type, field: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        settings(3)
    with pytest.raises(FrozenInstanceError):
        setattr(settings(), field, 3)


def test_defaults_are_accepted_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LoraSettings()
        SamplingSettings()


def test_top_p_warns_that_log_probs_are_those_of_the_full_distribution() -> None:
    with pytest.warns(UserWarning, match=r"sampling\.top_p: 0\.9"):
        SamplingSettings(top_p=0.9)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sampler": "fast"}, "sampling.sampler: 'fast' is unknown; use generate or continuous or vllm"),
        ({"cache": "big"}, "sampling.cache: 'big' is unknown; use dynamic or static"),
        ({"batch_size": 0}, "sampling.batch_size: 0 is out of range; expected an integer >= 1"),
        ({"engine": {"seed": 1}}, "sampling.engine: generate has no engine"),
    ],
)
def test_a_sampler_or_cache_that_does_not_exist_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SamplingSettings(**settings)
