"""A run whose sampler ends, or whose step is not finite, keeps what is done and can go on from there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_modules import STEP, BreaksPPO, failed, poison, ppo_module, sft_loop, sft_module
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.errors import UserError
from ippo_lightning.influence import ChecksumError
from ippo_lightning.modules import FailedStepError, SFTModule

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


class FailsInEvaluations:
    """A reward that draws, and then fails for the four prompts of an evaluation, whose batches are smaller."""

    def __init__(self, *, is_mended: bool = False) -> None:
        self.is_mended = is_mended

    def __call__(self, prompts: Any, responses: Any, examples: Any) -> list[float]:
        torch.rand(3)
        if len(prompts) == 8 and not self.is_mended:
            raise KeyError("topic")
        return [float(len(response)) for response in responses]


@pytest.mark.parametrize("num_train", [32, 16], ids=["middle of an epoch", "end of an epoch"])
def test_an_iteration_whose_evaluation_fails_is_kept_and_the_resumed_run_begins_with_the_evaluation(
    tmp_path: Path, num_train: int
) -> None:
    settings = {**NUMBERS, "max_iterations": 4, "evaluate_every_n_iterations": 2}
    unbroken = tiny_module(reward=FailsInEvaluations(is_mended=True))
    whole = tiny_loop(tmp_path / "unbroken", unbroken, data=tiny_data(num_train=num_train), **settings)
    whole.fit()
    folder = tmp_path / "broken"
    with pytest.raises(UserError, match=r"raised KeyError: .*\(while the evaluation of the validation split measured"):
        tiny_loop(
            folder, tiny_module(reward=FailsInEvaluations()), data=tiny_data(num_train=num_train), **settings
        ).fit()
    assert [path.name for path in (folder / "checkpoints").glob("iteration_*")] == ["iteration_0000002.ckpt"]
    resumed = tiny_module(reward=FailsInEvaluations(is_mended=True))
    loop = tiny_loop(folder, resumed, data=tiny_data(num_train=num_train), resume=True, **settings)
    loop.fit()
    assert loop.folder.read_rows("evaluations.jsonl") == whole.folder.read_rows("evaluations.jsonl")
    assert [row["iteration"] for row in loop.folder.read_rows("history.jsonl")] == list(range(4))
    assert same(trainable(resumed), trainable(unbroken))


def test_a_resumed_run_begins_with_the_step_that_broke(tmp_path: Path) -> None:
    """No regular checkpoint is written, so the one of the last good state is all there is."""
    whole = sft_module()
    sft_loop(tmp_path / "whole", whole).fit()

    class Once(SFTModule):
        """Fails once by a loss that is not finite; the weights stay as they are."""

        is_mended = False

        def demonstration_loss(self, encoded: Any, denominator: float) -> torch.Tensor:
            loss = super().demonstration_loss(encoded, denominator)
            return loss * math.nan if self.iteration == STEP and not self.is_mended else loss

    broken = tmp_path / "broken"
    settings = {"checkpoint_every_n_iterations": 0}
    with pytest.raises(FailedStepError):
        sft_loop(broken, sft_module(Once), **settings).fit()
    module = sft_module(Once)
    module.is_mended = True
    sft_loop(broken, module, resume=True, **settings).fit()
    assert same(trainable(module), trainable(whole))


def test_the_state_before_a_broken_step_takes_no_older_checkpoint_away(tmp_path: Path) -> None:
    """The run may have gone wrong before: a regular checkpoint is of iteration 2, and 3 breaks."""

    class Breaks(SFTModule):
        def demonstration_loss(self, encoded: Any, denominator: float) -> torch.Tensor:
            loss = super().demonstration_loss(encoded, denominator)
            return loss * math.nan if self.iteration == 3 else loss

    with pytest.raises(FailedStepError):
        sft_loop(tmp_path, sft_module(Breaks), checkpoint_every_n_iterations=2).fit()
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("iteration_*"))
    assert names == ["iteration_0000002.ckpt", "iteration_0000003.ckpt"]


def test_weights_that_are_nan_take_no_good_checkpoint_away(tmp_path: Path) -> None:
    """The step of iteration 2 is finite and its result is not, as with an epsilon of Adam that rounds to 0."""

    class Breaks(SFTModule):
        def clip_and_step(self, max_grad_norm: float | None) -> float:
            norm = super().clip_and_step(max_grad_norm)
            if self.iteration == 2:
                poison(self, math.nan)
            return norm

    with pytest.raises(FloatingPointError, match=r"weights: policy\.\S+ contains NaN before a checkpoint; .*lower"):
        sft_loop(tmp_path, sft_module(Breaks), checkpoint_every_n_iterations=1).fit()
    (left,) = (tmp_path / "checkpoints").glob("iteration_*")
    assert left.name == "iteration_0000002.ckpt"
    parameters = torch.load(left, weights_only=True)["parameters"]
    assert all(bool(torch.isfinite(value).all()) for value in parameters.values())


def test_a_score_that_disagrees_with_autograd_loses_no_iteration(tmp_path: Path) -> None:
    class FailsInTheThird:
        def on_rollout_end(self, trainer: Any, pl_module: Any, plan: Any) -> None:
            if pl_module.iteration == 2:
                raise ChecksumError("the scores are wrong")

    numbers = {"max_iterations": 4, "checkpoint_every_n_iterations": 0}
    with pytest.raises(ChecksumError):
        tiny_loop(tmp_path, tiny_module(), callbacks=[FailsInTheThird()], **numbers).fit()
    (file,) = (tmp_path / "checkpoints").glob("iteration_*")
    assert torch.load(file, weights_only=True)["progress"]["iteration"] == 2


def test_the_counts_of_callbacks_go_back_with_the_state(tmp_path: Path) -> None:
    module = ppo_module(BreaksPPO)
    loop = tiny_loop(tmp_path, module, callbacks=[InfluenceFilter()], max_iterations=4, checkpoint_every_n_iterations=0)
    failed(loop.fit, tmp_path)
    (file,) = (tmp_path / "checkpoints").glob("iteration_*")
    state = torch.load(file, weights_only=True)
    assert state["progress"]["iteration"] == STEP
    assert [entry["state"]["iteration"] for entry in state["callbacks"]] == [STEP]


def test_what_a_failed_iteration_left_in_a_callback_goes_again(tmp_path: Path) -> None:
    class Collects(Ends):
        """Begins with an empty state, and changes it in place."""

        def __init__(self, iteration: int) -> None:
            super().__init__(iteration)
            self.seen: dict[str, Any] = {}
            self.count = torch.zeros(1)

        def state_dict(self) -> dict[str, Any]:
            return self.seen

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state

        def on_rollout_start(self, trainer: Any, pl_module: Any, plan: Any) -> None:
            self.seen.setdefault("iterations", []).append(pl_module.iteration)
            self.seen["count"] = self.count.add_(1)
            super().on_rollout_start(trainer, pl_module, plan)

    for iteration in (0, 2):
        with pytest.raises(ConnectionError):
            tiny_loop(
                tmp_path / str(iteration), tiny_module(), data=tiny_data(), callbacks=[Collects(iteration)], **NUMBERS
            ).fit()
        (file,) = (tmp_path / str(iteration) / "checkpoints").glob("iteration_*")
        (saved,) = torch.load(file, weights_only=True)["callbacks"]
        assert saved["state"].get("iterations", []) == list(range(iteration))
        assert float(saved["state"].get("count", 0)) == iteration
