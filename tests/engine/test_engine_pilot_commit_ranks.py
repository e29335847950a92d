"""Two gloo processes with pilot responses: each chooses among its own prompts, and they train together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import two_ranks_pilots as script
from launching import Outcome, outcome_of
from lightning.fabric import Fabric
from training_parts import trainable

pytestmark = pytest.mark.slow

EXACT = 1e-10
"""fp64: the two sides add the same numbers in another order."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(Path(script.__file__), tmp_path_factory)


def test_two_ranks_on_halves_of_a_batch_equal_one_rank_on_the_whole(outcome: Outcome, tmp_path: Path) -> None:
    module = script.module_of(num_prompts=4)
    module.double()
    start = trainable(module)
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    whole = script.trained(tmp_path / "run", module, fabric, script.PROMPTS)
    halves = [rank["halves"] for rank in outcome.ranks]
    names = [name for name in whole if name.startswith("pilot_commit/")]
    assert len(names) == 4
    for half in halves:
        assert {name: half[name] for name in names} == pytest.approx({name: whole[name] for name in names})
    assert whole["episodes_seen"] == halves[0]["episodes_seen"] == 16 * 2 + 4 * 2
    assert sorted(whole["prompts"]) == sorted([*halves[0]["prompts"], *halves[1]["prompts"]]) == sorted(script.VARIED)
    for half in outcome.tensors("halves"):
        for name, value in trainable(module).items():
            torch.testing.assert_close(half[name], value, rtol=0, atol=EXACT)
    assert any(not torch.equal(start[name], value) for name, value in trainable(module).items())


def test_a_sharded_rank_with_fewer_prompts_than_are_chosen_samples_twice_too(outcome: Outcome) -> None:
    first, second = (rank["uneven"] for rank in outcome.ranks)
    assert (len(first["prompts"]), first["sampled"]) == (3, 8 * 2 + 3 * 2)
    assert (len(second["prompts"]), second["sampled"]) == (2, 2 * 4)
    assert first["pilot_commit/pilots"] == second["pilot_commit/pilots"] == 20
    assert first["pilot_commit/pilots_discarded"] == second["pilot_commit/pilots_discarded"] == 10
    assert first["episodes_seen"] == second["episodes_seen"] == 2 * 30
