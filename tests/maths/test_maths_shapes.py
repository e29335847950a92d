"""Shapes in signatures: the tests check them on each call, and the library works without the package that does it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from ippo_lightning.maths import keep_at_least, masked_row_mean, masked_sum, token_log_probs

ROWS = torch.zeros(3)
STEPS = torch.zeros(3, 4)
LOGITS = torch.zeros(3, 4, 7)
IDS = torch.zeros(3, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (masked_sum, {"values": STEPS, "mask": torch.ones(4, dtype=torch.bool)}),  # torch would broadcast it
        (masked_sum, {"values": STEPS, "mask": torch.ones(3, 4)}),
        (masked_row_mean, {"values": STEPS, "mask": torch.ones(3, 5, dtype=torch.bool)}),
        (masked_row_mean, {"values": ROWS, "mask": torch.ones(3, dtype=torch.bool)}),
        (keep_at_least, {"scores": ROWS, "keep": torch.ones(2, dtype=torch.bool), "min_keep": 1}),
        (token_log_probs, {"logits": LOGITS, "ids": IDS[:, :3], "temperature": 1.0}),
        (token_log_probs, {"logits": LOGITS, "ids": IDS.int(), "temperature": 1.0}),
    ],
)
def test_a_wrong_shape_or_dtype_stops_at_the_call(function: Callable[..., Tensor], arguments: dict[str, Any]) -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter"):
        function(**arguments)


def test_without_jaxtyping_the_maths_work_the_same() -> None:
    program = (
        "import sys; sys.modules['jaxtyping'] = None\n"
        "import torch; from ippo_lightning.maths import masked_sum\n"
        "print(masked_sum(values=torch.tensor([1.0, 2.0]), mask=torch.tensor([True, False])).item())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "1.0\n", done.stderr
