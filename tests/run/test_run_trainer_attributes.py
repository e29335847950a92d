"""Lightning's own callbacks find in the loop what they read of their trainer, and do what they do under Trainer."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import two_ranks_callbacks
from launching import Outcome, outcome_of
from lightning import Callback
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from recording import StopAfter, recorder, under_fabric, under_trainer
from training_parts import same, tiny_loop, tiny_module, trainable

from ippo_lightning.errors import UserError
from ippo_lightning.run.checkpoints import read_checkpoint


@pytest.mark.parametrize("at_epoch_end", [None, True], ids=["after evaluations", "after epochs"])
def test_early_stopping_stops_where_it_stops_trainer(at_epoch_end: bool | None, tmp_path: Path) -> None:
    def stopper() -> EarlyStopping:
        return EarlyStopping(
            "rollout/reward_mean", mode="max", patience=1, min_delta=10.0, check_on_train_epoch_end=at_epoch_end
        )

    by_fabric, by_trainer = stopper(), stopper()
    first = under_fabric(tmp_path, [by_fabric], max_iterations=12, evaluate_first=True)
    second = under_trainer(tmp_path, [by_trainer], max_epochs=3)
    assert first.iteration == second.iteration == (8 if at_epoch_end else 4)
    assert by_fabric.state_dict() == by_trainer.state_dict()
    assert by_fabric.wait_count == 1


def test_early_stopping_monitors_an_evaluation(tmp_path: Path) -> None:
    stopper = EarlyStopping("eval/exact_match", mode="max", patience=2)
    module = under_fabric(tmp_path, [stopper])
    assert module.iteration == 6  # nothing is right: the first of three evaluations is the best
    assert float(stopper.best_score) == 0.0


def test_a_resumed_run_stops_where_the_unbroken_run_stops(tmp_path: Path) -> None:
    def stopper() -> EarlyStopping:
        return EarlyStopping("eval/exact_match", mode="max", patience=2)

    under_fabric(tmp_path, [stopper(), StopAfter(3)], checkpoint_every_n_iterations=1)
    resumed = under_fabric(tmp_path, [stopper(), StopAfter(99)], resume=True)
    assert resumed.iteration == 6


def test_a_run_that_was_stopped_early_and_is_resumed_stops_after_the_next_evaluation(tmp_path: Path) -> None:
    def stopper() -> EarlyStopping:
        return EarlyStopping("eval/exact_match", mode="max", patience=2)

    assert under_fabric(tmp_path, [stopper()]).iteration == 6
    assert under_fabric(tmp_path, [stopper()], resume=True).iteration == 8


def test_a_metric_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"callbacks: EarlyStopping\.on_validation_end raised RuntimeError: .*`nothing`"
    ):
        under_fabric(tmp_path, [EarlyStopping("nothing")])


def test_model_checkpoint_keeps_the_best_as_under_trainer(tmp_path: Path) -> None:
    def keeper(name: str) -> ModelCheckpoint:
        return ModelCheckpoint(
            dirpath=tmp_path / name, monitor="rollout/reward_mean", mode="max", save_top_k=2, save_last=True
        )

    by_fabric, by_trainer = keeper("by_fabric"), keeper("by_trainer")
    under_fabric(tmp_path, [by_fabric])
    under_trainer(tmp_path, [by_trainer])
    scores = [sorted(map(float, item.best_k_models.values())) for item in (by_fabric, by_trainer)]
    assert scores[0] == scores[1]
    assert by_fabric.best_model_score == by_trainer.best_model_score
    files = [sorted((tmp_path / name).iterdir()) for name in ("by_fabric", "by_trainer")]
    # Trainer's step is the iteration counted from 0, which our modules log under that name.
    epochs = [[path.name.split("-")[0] for path in paths] for paths in files]
    assert epochs[0] == epochs[1]
    assert len(files[0]) == 3
    assert files[0][-1].name == "last.ckpt"


def test_a_file_of_model_checkpoint_evaluates_as_the_model_did(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(dirpath=tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, save_weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = under_fabric(tmp_path, [keeper], max_iterations=2, evaluate_every_n_iterations=0)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"]
    other = tiny_module()
    tiny_loop(tmp_path / "elsewhere", other).set_up_evaluation(tmp_path / "kept" / "epoch=0-step=2.ckpt")
    assert same(trainable(module), trainable(other))


def test_model_checkpoint_finds_its_folder_beside_the_default_logger(tmp_path: Path) -> None:
    logger = CSVLogger(root_dir=tmp_path / "fabric", name="csv", version="")
    keeper = ModelCheckpoint()
    under_fabric(tmp_path, [keeper], fabric=Fabric(accelerator="cpu", devices=1, loggers=logger))
    assert Path(keeper.best_model_path).parent == tmp_path / "fabric" / "csv" / "checkpoints"
    assert read_checkpoint(Path(keeper.best_model_path))["progress"]["iteration"] == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"save_last": True}, r"ModelCheckpoint\.save_last would replace last\.ckpt of the run"),
        ({"train_time_interval": timedelta(seconds=1)}, r"ModelCheckpoint\.train_time_interval has no effect"),
    ],
    ids=["last.ckpt of the run", "interval of time"],
)
def test_a_model_checkpoint_that_cannot_do_its_work_is_refused(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    recorded = recorder()
    with pytest.raises(UserError, match=said):
        under_fabric(tmp_path, [ModelCheckpoint(**arguments), recorded])
    assert "on_train_batch_start" not in {event[0] for event in recorded.events}


def test_an_attribute_that_only_trainer_has_is_one_line(tmp_path: Path) -> None:
    class Profiles(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.profiler.describe()

    with pytest.raises(UserError, match=r"trainer\.profiler is read, which .* \(in Profiles\.on_fit_start\)"):
        under_fabric(tmp_path, [Profiles()])
    loop = tiny_loop(tmp_path / "other", tiny_module())
    assert not hasattr(loop, "profiler")
    assert getattr(loop, "profiler", "default") == "default"


def test_a_number_that_a_module_or_a_callback_logs_can_be_monitored(tmp_path: Path) -> None:
    class Logs(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            pl_module.log("mine", 1.0)

    stopper = EarlyStopping("mine", patience=1)
    assert under_fabric(tmp_path, [Logs(), stopper]).iteration == 4
    assert under_trainer(tmp_path, [Logs(), EarlyStopping("mine", patience=1)]).iteration == 4


def test_a_module_knows_the_loop_its_epoch_and_its_step(tmp_path: Path) -> None:
    class Reads(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert pl_module.trainer is trainer
            seen.append((pl_module.current_epoch, pl_module.global_step, trainer.global_step))

    seen: list[Any] = []
    under_fabric(tmp_path, [Reads()], max_iterations=5, evaluate_every_n_iterations=0)
    assert seen == [(0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 4, 4), (1, 5, 5)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(Path(two_ranks_callbacks.__file__), tmp_path_factory)


@pytest.mark.slow
def test_two_ranks_stop_together_if_one_of_them_decides_to(two_ranks: Outcome) -> None:
    assert [numbers["iterations"] for numbers in two_ranks.ranks] == [3, 3]


@pytest.mark.slow
def test_two_ranks_keep_the_same_files(two_ranks: Outcome) -> None:
    first, second = two_ranks.ranks
    assert first["best"] == second["best"]
    assert Path(first["best"]).is_file()
    assert len(list((two_ranks.folder / "kept").iterdir())) == 2


@pytest.mark.slow
def test_two_ranks_with_loaders_of_different_length_have_the_epochs_of_rank_0(two_ranks: Outcome) -> None:
    assert (
        two_ranks.ranks[0]["epochs"] == two_ranks.ranks[1]["epochs"] == ["on_train_epoch_start", "on_train_epoch_end"]
    )


@pytest.mark.slow
def test_each_of_two_ranks_resumes_at_its_own_position(two_ranks: Outcome) -> None:
    for whole, resumed in zip(two_ranks.tensors("whole"), two_ranks.tensors("resumed"), strict=True):
        assert same(whole, resumed)
