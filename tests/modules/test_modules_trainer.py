"""`lightning.Trainer` runs the modules as `FabricLoop` does, and its own features work with them."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from critic_free import ALGORITHMS, critic_free_module
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from training_parts import same, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.algorithms import AdaptiveKLController
from ippo_lightning.callbacks import EpisodeLog, InfluenceFilter, IntrinsicStopping
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings, SFTModule
from ippo_lightning.modules.backends import require_full_or_fsdp2
from ippo_lightning.policies import LoraSettings, SamplingSettings
from ippo_lightning.tasks import grade_arithmetic

SEED = 5


def trainer_of(folder: Path, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return Trainer(**{**settings, **changes})


def adaptive(**changes: Any) -> Any:
    return tiny_module(
        update={"num_epochs": 2},
        kl_controller=AdaptiveKLController(coef=0.1, target=0.5, horizon=32),
        optimizer=OptimizerSettings(learning_rate=1e-3, schedule="linear", warmup_iterations=1),
        **changes,
    )


def supervised() -> SFTModule:
    return SFTModule(
        policy=tiny_policy(value="none", reference="none"),
        grader=grade_arithmetic,
        evaluation=SamplingSettings(num_responses=1, max_new_tokens=8),
        micro_batch_size=5,
    )


@pytest.mark.parametrize(
    ("kind", "evaluates"),
    [
        # Each kind once; an evaluation takes the same path in all of them.
        pytest.param(kind, evaluates, marks=() if evaluates == (kind in ("filtered", "sft")) else pytest.mark.slow)
        for kind in ("ppo", "filtered", "adapter", "sft")
        for evaluates in (False, True)
    ]
    + [pytest.param("layers", False, marks=pytest.mark.slow)]
    + [pytest.param(name, False, marks=() if name == "dapo" else pytest.mark.slow) for name in ALGORITHMS],
)
def test_trainer_and_fabric_loop_give_bit_equal_parameters(kind: str, evaluates: bool, tmp_path: Path) -> None:
    def module() -> Any:
        return {
            "ppo": adaptive,
            "filtered": adaptive,
            "layers": adaptive,
            "adapter": lambda: adaptive(policy=tiny_policy(lora=LoraSettings(r=2))),
            "sft": supervised,
            **{name: partial(critic_free_module, name, update={"num_epochs": 2}) for name in ALGORITHMS},
        }[kind]()

    def callbacks() -> list[Any]:
        if kind == "layers":
            return [InfluenceFilter(score_at="layer", power=0.0)]
        return [] if kind in ("ppo", "sft") else [InfluenceFilter(min_keep=1), IntrinsicStopping(threshold=0.01)]

    stage: dict[str, Any] = {"stage": "sft", "num_demonstrations": 32} if kind == "sft" else {}
    by_fabric, by_trainer = module(), module()
    tiny_loop(
        tmp_path / "run",
        by_fabric,
        callbacks=callbacks(),
        seed=SEED,
        max_iterations=8,
        data=tiny_data(**stage),
        evaluate_every_n_iterations=4 if evaluates else 0,
        evaluate_first=evaluates,
    ).fit()
    seed_everything(SEED, verbose=False)
    trainer = trainer_of(
        tmp_path, max_epochs=2, callbacks=callbacks(), **({} if evaluates else {"limit_val_batches": 0})
    )
    trainer.fit(by_trainer, datamodule=tiny_data(**stage))
    assert by_trainer.iteration == by_fabric.iteration == 8
    assert by_trainer.progress_state() == by_fabric.progress_state()
    assert same(trainable(by_fabric), trainable(by_trainer))


def test_checkpoints_of_trainer_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, broken, resumed = adaptive(), adaptive(), adaptive()
    callbacks = [lambda: InfluenceFilter(), lambda: IntrinsicStopping(threshold=0.01)]
    for module, epochs in ((whole, 3), (broken, 1)):
        seed_everything(SEED, verbose=False)
        keeper = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True)
        # as many epochs for the schedule; the broken run stops after its first
        trainer = trainer_of(
            tmp_path,
            max_epochs=3,
            limit_val_batches=0,
            enable_checkpointing=True,
            callbacks=[keeper, StopAfter(epochs), *(make() for make in callbacks)],
        )
        trainer.fit(module, datamodule=tiny_data())
    torch.rand(7)  # the stream is somewhere else
    trainer = trainer_of(tmp_path, max_epochs=3, limit_val_batches=0, callbacks=[make() for make in callbacks])
    trainer.fit(resumed, datamodule=tiny_data(), ckpt_path=tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert resumed.progress_state() == whole.progress_state()
    assert same(trainable(whole), trainable(resumed))


class StopAfter(Callback):
    """Ends a run after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_trainers_own_callbacks_work_on_our_metrics(tmp_path: Path) -> None:
    module = tiny_module()
    keeper = ModelCheckpoint(dirpath=tmp_path / "kept", monitor="eval/label/wrong_answer", mode="min", save_top_k=2)
    stopper = EarlyStopping(monitor="eval/exact_match", patience=1, mode="max")
    monitor = LearningRateMonitor()
    logger = CSVLogger(tmp_path, name="csv", version="")
    trainer = trainer_of(
        tmp_path,
        max_epochs=9,
        enable_checkpointing=True,
        logger=logger,
        callbacks=[keeper, stopper, monitor, InfluenceFilter(), EpisodeLog()],
    )
    trainer.fit(module, datamodule=tiny_data())
    assert trainer.current_epoch < 9  # an untrained model answers nothing, from the first evaluation on
    assert keeper.best_model_path
    with (tmp_path / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["rollout/reward_mean"]]
    assert steps == list(range(module.iteration))  # ours, not the number of optimizer steps
    assert module.optimizer_steps > module.iteration
    assert {"update/kept_fraction", "influence/gradient_norm", "time/rollout_seconds", "eval/exact_match"} <= rows[
        0
    ].keys()
    assert any(name.startswith("lr-") for name in rows[0])
    assert (tmp_path / "episodes.jsonl").exists()


def test_strategies_that_divide_parameters_in_other_ways_are_refused() -> None:
    require_full_or_fsdp2(DDPStrategy())
    with pytest.raises(UserError, match=r"FSDPStrategy shards the parameters.*use ModelParallelStrategy \(FSDP2\)"):
        require_full_or_fsdp2(FSDPStrategy())


def test_fast_dev_run_and_test_work(tmp_path: Path) -> None:
    module = tiny_module()
    Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, logger=False).fit(
        module, datamodule=tiny_data()
    )
    assert module.iteration == 1
    (metrics,) = trainer_of(tmp_path).test(module, datamodule=tiny_data(), verbose=False)
    assert {"test/exact_match", "test/pass_at_k"} <= metrics.keys()


def test_max_time_ends_a_run(tmp_path: Path) -> None:
    module = tiny_module()
    trainer_of(tmp_path, max_epochs=-1, max_time={"seconds": 1}, limit_val_batches=0).fit(
        module, datamodule=tiny_data()
    )
    assert module.iteration > 1


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    trainer_of(tmp_path, logger=logger, limit_train_batches=2).fit(tiny_module(), datamodule=tiny_data())
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("rollout/reward_mean")] == [0, 1]


def test_one_adapter_holds_all_that_differs() -> None:
    import ippo_lightning.modules as modules

    folder = Path(str(modules.__file__)).parent
    words = ("self.trainer", "self.fabric", "trainer.strategy", "no_backward_sync", "clip_gradients(")
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8").replace("self.backend.clip_gradients(", "")
        if path.name != "backends.py":
            assert not [word for word in words if word in text], path
    assert issubclass(modules.PPOModule, LightningModule)
