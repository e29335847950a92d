"""The prediction of a gain from a table of scores along groups of demonstrations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ippo_lightning.selection.predicted_gain import GainPredictor
from ippo_lightning.selection.table import RolloutTable


def table(groups: list[int]) -> RolloutTable:
    scores = torch.rand(4, len(groups), generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    none = torch.zeros(len(groups), dtype=torch.bool)
    return RolloutTable(
        columns={"scores": scores.mean(dim=0), "groups": torch.tensor(groups, dtype=torch.float64)},
        kept=~none,
        force_keep=none,
        force_drop=none,
        group_scores=scores,
        mine=slice(0, len(groups)),
        iteration=0,
    )


@pytest.mark.parametrize(("kept_rows", "is_prediction"), [([0, 1], False), ([0, 2], True), ([], False)])
def test_responses_to_one_prompt_alone_predict_no_gain(kept_rows: list[int], is_prediction: bool) -> None:
    predictor = GainPredictor()

    def weights(_: RolloutTable) -> Tensor:
        return torch.tensor([float(row in kept_rows) for row in range(4)], dtype=torch.float64)

    predictor.predict(table([0, 0, 1, 1]), weights)
    assert predictor.newest is not None
    assert (predictor.newest.mean > 0) is is_prediction
    assert (predictor.newest.of_rows > 0) is is_prediction
