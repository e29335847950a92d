"""Data of other content has another digest, the same in every process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ippo_lightning.records.digests import batch_digest

BASE = {"prompts": ["a", "b"], "examples": [{"answer": "1"}, {}], "ids": torch.arange(6).view(2, 3)}


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ["a", "c"]},
        {"prompts": ["ab", ""]},
        {"examples": [{}, {"answer": "1"}]},
        {"examples": [{"answer": 1}, {}]},
        {"ids": torch.arange(6).view(3, 2)},
        {"ids": torch.arange(6).view(2, 3).float()},
        {"ids": torch.tensor([[0, 1, 2], [3, 4, 6]])},
    ],
    ids=["text", "border of texts", "order", "kind", "shape", "dtype", "value"],
)
def test_the_digest_of_another_batch_differs(change: dict[str, Any]) -> None:
    assert batch_digest({**BASE, **change}) != batch_digest(BASE)


def test_the_digest_of_the_same_content_is_the_same_number_everywhere() -> None:
    again = {"prompts": ["a", "b"], "examples": [{"answer": "1"}, {}], "ids": torch.arange(6).view(2, 3)}
    assert batch_digest(again) == batch_digest(BASE)
    assert batch_digest({"prompts": ["a"]}) == 52074865582202577  # as a checkpoint of another process contains it
    assert batch_digest([object()]) == batch_digest([object()])
    for dtype in (torch.bfloat16, torch.bool):
        assert batch_digest(torch.ones(3, dtype=dtype)) != batch_digest(torch.zeros(3, dtype=dtype))
