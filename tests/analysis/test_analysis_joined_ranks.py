"""A kept iteration of several ranks: each rank counts its prompts and environments from 0."""

from __future__ import annotations

from pathlib import Path

import torch
from small_episodes import make_episodes

from ippo_lightning.analysis import read_round
from ippo_lightning.records.kept_rounds import KeptRound
from ippo_lightning.storage.iteration_files import buffer_path


def test_the_groups_of_two_ranks_stay_apart(tmp_path: Path) -> None:
    for rank, groups in enumerate(([0, 0, 1], [0, 1, 1])):
        round_ = KeptRound(
            iteration=0,
            num_ranks=2,
            episodes=make_episodes([2] * 3, [3] * 3).evolve(group=torch.tensor(groups)),
            history=(),
            trains_policy=True,
            parameters={},
            optimizer={},
            scaler={},
            progress={},
            random={},
            fingerprint="",
        )
        path = buffer_path(tmp_path, iteration=0, rank=rank)
        path.parent.mkdir(exist_ok=True)
        torch.save(round_.content(), path)
    assert read_round(tmp_path, 0).episodes.group.tolist() == [0, 0, 1, 2, 3, 3]
