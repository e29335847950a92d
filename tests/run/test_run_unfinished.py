"""A run whose sampler ends in the middle keeps what is done, and resumes as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable

NUMBERS: dict[str, Any] = {"max_iterations": 6, "checkpoint_every_n_iterations": 0}  # 32 prompts: four per epoch


class Ends:
    """Draws from the random stream, as a sampler does, and then loses its connection."""

    state_key = "ends"

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def state_dict(self) -> dict[str, Any]:
        return {}

    def on_rollout_start(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        if pl_module.iteration == self.iteration:
            torch.rand(3)
            raise ConnectionError("the engine has ended")


@pytest.mark.parametrize("iteration", [0, 2, 4], ids=["first", "middle of an epoch", "first of an epoch"])
def test_iterations_before_a_lost_sampler_are_kept_and_the_resumed_run_is_the_unbroken_one(
    tmp_path: Path, iteration: int
) -> None:
    unbroken = tiny_module()
    tiny_loop(tmp_path / "unbroken", unbroken, data=tiny_data(), **NUMBERS).fit()
    with pytest.raises(ConnectionError):
        tiny_loop(tmp_path / "broken", tiny_module(), data=tiny_data(), callbacks=[Ends(iteration)], **NUMBERS).fit()
    resumed = tiny_module()
    loop = tiny_loop(tmp_path / "broken", resumed, data=tiny_data(), resume=True, **NUMBERS)
    loop.fit()
    rows = loop.folder.read_rows("history.jsonl")
    assert [row["iteration"] for row in rows] == list(range(6))
    assert same(trainable(resumed), trainable(unbroken))
