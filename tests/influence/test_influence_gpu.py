"""Scores on a GPU equal scores on the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny_language_models import Batch, a_batch, a_direction, episode_losses, language_model, relative_error, with_lora

from ippo_lightning.influence import influence_scores

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
EXACT = 1e-6
"""Tolerance in float64; the norms of Llama round to float32 on both devices."""


def on_gpu(batch: Batch) -> Batch:
    return replace(batch, **{name: column.cuda() for name, column in vars(batch).items()})


@pytest.mark.parametrize("method", ["hooks", "forward", "per_episode"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_scores_on_a_gpu_equal_those_on_the_cpu(adapted: bool, method: str) -> None:
    model = language_model("llama")
    model = with_lora(model, "llama") if adapted else model
    batches, direction = [a_batch(3, seed=1), a_batch(4, seed=2)], a_direction(model)
    expected = influence_scores(model, episode_losses, batches, direction)
    moved = copy.deepcopy(model).cuda()
    found = influence_scores(moved, episode_losses, [on_gpu(batch) for batch in batches], direction, method=method)
    assert relative_error(found.cpu(), expected) <= EXACT
