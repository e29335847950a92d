"""Two ranks decide what one process decides, whatever the rule and the target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
import two_ranks_select
from launching import start_method
from two_ranks_select import BASELINES, COUNT, GAIN, RULES

FLOAT32 = 1e-6
Weights = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("two_ranks")
    torch.multiprocessing.start_processes(
        two_ranks_select.work, args=(str(folder),), nprocs=2, start_method=start_method()
    )
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("rule", RULES)
def test_two_ranks_give_the_weights_of_one_process(rule: str, halves: Weights) -> None:
    expected = two_ranks_select.weights_of(list(range(COUNT)))[rule]
    found = torch.cat([half[rule] for half in halves])
    assert 0 < int((expected > 0).sum()) < COUNT
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32)


def test_two_ranks_compare_the_kept_rows_as_one_process_does(halves: Weights) -> None:
    expected = two_ranks_select.weights_of(list(range(COUNT)))[BASELINES]
    torch.testing.assert_close(torch.cat([half[BASELINES] for half in halves]), expected, rtol=1e-12, atol=1e-12)


def test_two_ranks_predict_the_gain_of_one_process(halves: Weights) -> None:
    expected = two_ranks_select.weights_of(list(range(COUNT)))[GAIN]
    assert (expected[1:4] > 0).all()
    assert torch.equal(halves[0][GAIN], halves[1][GAIN])  # so that both stop together
    torch.testing.assert_close(halves[0][GAIN], expected, rtol=1e-12, atol=1e-12)
