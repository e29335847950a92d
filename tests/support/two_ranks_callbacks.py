"""Callbacks and loaders of two processes; forked_ranks.py starts it, and the tests read what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from recording import StopAfter, recorder
from training_parts import tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.data import TextDataModule


class Uneven(TextDataModule):
    """A list of three batches on rank 0, and a stream of four, without a length, on rank 1."""

    def __init__(self, rank: int) -> None:
        super().__init__(tiny_data().task, batch_size=4)
        self.rank = rank

    def train_dataloader(self) -> Any:
        batches = list(super().train_dataloader())
        return batches[:3] if self.rank == 0 else Stream(batches[:4])


class Stream:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


class WorseOnRankOne(Callback):
    """Logs a number that stops improving on rank 1 alone, from its third evaluation on."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        step = min(trainer.global_step, 2) if trainer.global_rank == 1 else trainer.global_step
        pl_module.log("mine", float(step))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    rank = fabric.global_rank

    def fitted(name: str, callbacks: list[Any], **changes: Any) -> dict[str, torch.Tensor]:
        module = tiny_module()
        tiny_loop(folder / name, module, fabric=fabric, data=Uneven(rank), callbacks=callbacks, **changes).fit()
        return trainable(module)

    stopper = EarlyStopping("mine", mode="max", patience=1)
    keeper = ModelCheckpoint(dirpath=folder / "kept", monitor="rollout/reward_mean", mode="max", save_top_k=2)
    events = recorder()
    fitted("stopped", [WorseOnRankOne(), stopper, keeper, events], max_iterations=9, evaluate_every_n_iterations=1)
    numbers = {
        "epochs": [event[0] for event in events.events if "train_epoch" in event[0]],
        "iterations": sum(event[0] == "on_train_batch_end" for event in events.events),
        "best": keeper.best_model_path,
    }
    torch.save(fitted("whole", [], max_iterations=7), folder / f"whole.rank{rank}.pt")
    fitted("broken", [StopAfter(5)], max_iterations=7)
    torch.save(fitted("broken", [], max_iterations=7, resume=True), folder / f"resumed.rank{rank}.pt")
    (folder / f"rank{rank}.json").write_text(json.dumps(numbers), encoding="utf-8")
