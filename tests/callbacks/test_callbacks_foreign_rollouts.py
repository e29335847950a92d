"""Projects that make their buffer at any time: what cannot be filtered stops the run, and `apply` works anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.errors import UserError
from ippo_lightning.records import Episodes
from ippo_lightning.selection import Random

ROWS = 8
# drawn while the tests are collected, before any of them sets the seed
SOURCE = torch.Generator().manual_seed(0)
GOOD = [{"x": torch.randn(16, 3, generator=SOURCE), "y": torch.randn(16, generator=SOURCE)}]


def new_buffer() -> dict[str, Tensor]:
    return {"x": torch.randn(ROWS, 3), "y": torch.randn(ROWS), "weights": torch.ones(ROWS)}


class Project(LightningModule):
    """Rolls out and learns; subclasses say when."""

    def __init__(self, influence: InfluenceFilter | None = None) -> None:
        super().__init__()
        self.network = nn.Linear(3, 1)
        self.influence = influence
        self.learned: list[Tensor] = []

    def episode_losses(self, rows: dict[str, Tensor]) -> Tensor:
        return (self.network(rows["x"]).squeeze(-1) - rows["y"]).square()

    def validation_loss(self, rows: dict[str, Tensor]) -> Tensor:
        return self.episode_losses(rows).mean()

    def learn(self) -> Tensor:
        self.learned.append(self.buffer["weights"].clone())
        return (self.buffer["weights"] * self.episode_losses(self.buffer)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.learn()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


class InStep(Project):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.buffer = new_buffer()
        return self.learn()


class InOwnHook(Project):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.buffer = new_buffer()


class Replaced(Project):
    def on_train_start(self) -> None:
        self.buffer = new_buffer()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.buffer = new_buffer()
        return self.learn()


class FilledInPlace(Replaced):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for name, column in new_buffer().items():
            self.buffer[name].copy_(column)
        return self.learn()


class FilledButForAMask(Replaced):
    """A column that is the same in each rollout does not hide the others."""

    def on_train_start(self) -> None:
        self.buffer = {**new_buffer(), "mask": torch.ones(ROWS, 1, dtype=torch.bool)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for name, column in new_buffer().items():
            self.buffer[name].copy_(column)
        return self.learn()


class NotRead(Replaced):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.episode_losses(new_buffer()).mean()


class Collected(Replaced):
    """What the hooks are for: the buffer is there before the batch begins."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.buffer["y"].mul_(1.0)  # a step may normalise a column in place
        return self.learn()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.buffer = new_buffer()


class Normalised(Collected):
    """A column that follows from the filtered ones may be a new tensor."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.buffer["advantages"] = self.buffer["advantages"] - self.buffer["advantages"].mean()
        return self.learn()

    def on_train_start(self) -> None:
        self.buffer = {**new_buffer(), "advantages": torch.randn(ROWS)}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.on_train_start()


class Emptied(Collected):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.learn()
        self.buffer.clear()
        return loss


class Applied(Project):
    """What `apply` is for: the rollout is in the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.buffer = new_buffer()
        assert self.influence is not None
        self.influence.apply(self, self.buffer)
        return self.learn()


def fit(
    module: Project, callback: InfluenceFilter | list[Any], folder: Path, *, batches: int = 3, **settings: Any
) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callback if isinstance(callback, list) else [callback],
        **settings,
    )
    trainer.fit(module, DataLoader(range(batches)))
    return trainer


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (InStep, "the module made it after the filter had run"),
        (InOwnHook, "the module made it after the filter had run"),
        (Replaced, "the module replaced it after it was filtered"),
        (FilledInPlace, "the module filled it again after it was filtered"),
        (FilledButForAMask, "the module filled it again after it was filtered"),
        (NotRead, "this batch begins with the buffer of the batch before, so the update does not read it"),
    ],
)
@pytest.mark.parametrize("monitor_only", [False, True], ids=["filter", "monitor"])
def test_a_buffer_that_the_step_does_not_learn_from_stops_the_run(
    kind: type[Project], words: str, monitor_only: bool, tmp_path: Path
) -> None:
    callback = InfluenceFilter(demonstrations=GOOD, monitor_only=monitor_only)
    with pytest.raises(UserError, match=words) as raised:
        fit(kind(), callback, tmp_path)
    assert "call influence.apply(module, buffer) between rollout and update" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [Collected, Emptied, Normalised])
def test_a_buffer_that_is_there_before_the_batch_is_filtered(kind: type[Project], tmp_path: Path) -> None:
    module = kind()
    fit(module, InfluenceFilter(demonstrations=GOOD, power=0), tmp_path)
    assert len(module.learned) == 3
    assert set(torch.cat(module.learned).tolist()) == {0.0, 1.0}


def test_apply_filters_what_the_step_has_just_rolled_out(tmp_path: Path) -> None:
    influence = InfluenceFilter(demonstrations=GOOD, power=0)
    module = Applied(influence)
    trainer = fit(module, influence, tmp_path)
    assert set(torch.cat(module.learned).tolist()) == {0.0, 1.0}
    kept = float((module.learned[-1] > 0).float().mean())
    assert float(trainer.callback_metrics["influence/scored_kept_fraction"]) == pytest.approx(kept)
    assert influence.iteration == 3


def test_apply_needs_no_trainer_and_takes_episodes_as_well() -> None:
    influence, module = InfluenceFilter(demonstrations=GOOD, power=0), Project()
    buffer = new_buffer()
    del buffer["weights"]
    influence = InfluenceFilter(demonstrations=GOOD, power=0, min_keep=1)
    plan = influence.apply(module, buffer)
    assert len(plan.weights) == ROWS
    assert len(buffer["x"]) == int(plan.keep.sum()) < ROWS
    numbers = torch.zeros(2, 1)
    record = Episodes(
        mask=torch.ones(2, 1, dtype=torch.bool),
        log_probs=numbers,
        ref_log_probs=numbers,
        values=numbers,
        rewards=numbers,
        advantages=torch.tensor([[1.0], [-1.0]]),
        returns=numbers,
        outcome_rewards=numbers[:, 0],
        truncated=torch.zeros(2, dtype=torch.bool),
        group=torch.arange(2),
    )
    assert InfluenceFilter(rule="advantage_sign").apply(module, record).weights.tolist() == [1, 0]


class Plain(Project):
    """Calls the filter nowhere, or for the first time in batch number `first_call`."""

    def __init__(self, influence: InfluenceFilter | None = None, *, first_call: int | None = None) -> None:
        super().__init__(influence)
        self.first_call, self.num_batches = first_call, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.num_batches += 1
        buffer = new_buffer()
        if self.first_call is not None and self.num_batches >= self.first_call:
            self.influence.apply(self, buffer)
        return self.episode_losses(buffer).mean()


@pytest.mark.parametrize(("batches", "stops_after"), [(3, 3), (120, 100)])
def test_each_fit_of_a_project_that_never_calls_the_filter_ends_in_an_error(
    batches: int, stops_after: int, tmp_path: Path
) -> None:
    influence = InfluenceFilter(demonstrations=GOOD)
    fit(Plain(influence, first_call=3), influence, tmp_path, batches=3)  # such a project may collect first
    for _ in range(2):
        module = Plain()
        with pytest.raises(UserError, match="nothing was filtered; Plain has no buffer and calls neither"):
            fit(module, influence, tmp_path, batches=batches)
        assert module.num_batches == stops_after


@pytest.mark.parametrize("kind", [Collected, Applied])
@pytest.mark.parametrize("batches", [6, 5])
def test_accumulated_micro_batches_share_a_target_gradient_and_a_line_of_the_log(
    kind: type[Project], batches: int, tmp_path: Path
) -> None:
    calls: list[int] = []

    def validation_loss(module: Project, rows: dict[str, Tensor]) -> Tensor:
        calls.append(module.trainer.global_step)
        return module.validation_loss(rows)

    scoring = ScoringSettings(health_every_n_iterations=0)
    influence = InfluenceFilter(demonstrations=GOOD, power=0, validation_loss=validation_loss, scoring=scoring)
    module = kind(influence)
    # micro-batches of a step: the last step of an epoch may have fewer
    trainer = fit(module, influence, tmp_path, batches=batches, accumulate_grad_batches=3)
    assert calls == [0, 1]
    assert influence.iteration == trainer.global_step == 2
    weights = torch.cat(module.learned[3:])
    logged = float(trainer.callback_metrics["influence/scored_kept_fraction"])
    assert logged == pytest.approx(float((weights > 0).float().mean()))
    size = float(weights.sum()) ** 2 / float(weights.square().sum())
    assert float(trainer.callback_metrics["influence/effective_sample_size"]) == pytest.approx(size)


def two_filters() -> list[InfluenceFilter]:
    rule = Random(fraction=0.5, seed=3)
    return [InfluenceFilter(demonstrations=GOOD, power=0), InfluenceFilter(rule=rule)]


def test_two_filters_on_one_buffer_stack_and_do_not_compound() -> None:
    module, buffer = Project(), new_buffer()
    first, second = two_filters()
    for _ in range(2):  # the buffer is filtered again for a second update
        first.apply(module, buffer)
        alone = buffer["weights"].clone()
        assert 0 < int((alone > 0).sum()) < ROWS
        second.apply(module, buffer)
        kept = buffer["weights"] > 0
        assert not bool((kept & (alone == 0)).any())
        assert int(kept.sum()) == round(int((alone > 0).sum()) / 2)


class SecondFilter(InfluenceFilter):
    """Of the same rule as the first."""


@pytest.mark.parametrize(
    ("first", "second"),
    [(InfluenceFilter(), InfluenceFilter(rule="reward")), (InfluenceFilter(), SecondFilter())],
    ids=["another rule", "another class"],
)
def test_two_filters_keep_their_states_apart(first: InfluenceFilter, second: InfluenceFilter) -> None:
    assert first.state_key == "InfluenceFilter"  # as in checkpoints of earlier versions
    assert second.state_key != first.state_key


def test_two_filters_by_hooks_are_not_taken_for_the_module(tmp_path: Path) -> None:
    module = Collected()
    fit(module, two_filters(), tmp_path)
    assert len(module.learned) == 3
    assert 0 < float((torch.cat(module.learned) > 0).float().mean()) < 0.6
