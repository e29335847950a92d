"""Settings refuse what cannot work, in one line that names the field."""

from __future__ import annotations

import warnings

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


def test_defaults_are_accepted_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LoraSettings()
        SamplingSettings()


def test_cutting_the_distribution_warns_that_log_probs_are_of_the_whole() -> None:
    with pytest.warns(UserWarning, match=r"sampling\.top_p: 0\.9"):
        SamplingSettings(top_p=0.9)
