"""A callback that writes down every hook of Lightning and of this project, and the runs that call it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from training_parts import tiny_data, tiny_loop, tiny_module

from ippo_lightning.modules import PPOModule

SEED = 5

OWN_HOOKS = ("on_rollout_start", "on_rollout_end", "on_update_end")
"""Hooks of this project."""
LIGHTNINGS_HOOKS = tuple(
    name
    for name in vars(Callback)
    if name in ("setup", "teardown", "state_dict", "load_state_dict") or name.startswith("on_")
)
"""Every hook that Lightning's own base class has, those of `Trainer.predict` and `Trainer.test` included."""


def described(value: Any) -> Any:
    """Return what tells a hook's argument apart and does not depend on who calls."""
    if isinstance(value, torch.optim.Optimizer):
        return type(value).__name__
    if isinstance(value, torch.Tensor):
        return float(value.detach())
    if isinstance(value, Mapping):
        return value["prompts"][0] if "prompts" in value else sorted(map(str, value))
    if isinstance(value, (int, str, type(None))):
        return value
    return type(value).__name__


def recorder(skipped: tuple[str, ...] = ()) -> Any:
    """Return a callback whose `events` are the hooks that were called, in their order.

    Args:
        skipped: hooks that it does not have.
    """
    events: list[tuple[Any, ...]] = []

    def hook(name: str) -> Any:
        def call(self: Any, trainer: Any, pl_module: Any, *arguments: Any, **named: Any) -> None:
            given = tuple(described(value) for value in (*arguments, *named.values()))
            # A checkpoint's entries are those of the loop that writes it.
            events.append((name, *(() if name in ("on_save_checkpoint", "on_load_checkpoint") else given)))

        return call

    def state_dict(self: Any) -> dict[str, Any]:
        events.append(("state_dict",))
        return {"events": len(events)}

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        events.append(("load_state_dict", state["events"]))

    methods: dict[str, Any] = {name: hook(name) for name in (*LIGHTNINGS_HOOKS, *OWN_HOOKS)}
    methods |= {"state_dict": state_dict, "load_state_dict": load_state_dict}
    kept = {name: method for name, method in methods.items() if name not in skipped}
    return type("Recorder", (Callback,), {**kept, "events": events})()


class StopAfter(Callback):
    """Ends a run after some iterations."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = trainer.should_stop or pl_module.iteration >= self.iterations


def under_fabric(folder: Path, callbacks: list[Any], **changes: Any) -> PPOModule:
    """Train for two epochs of four batches with two evaluations each."""
    module = tiny_module()
    settings = {"evaluate_every_n_iterations": 2, "max_iterations": 8, "checkpoint_every_n_iterations": 0, "seed": SEED}
    tiny_loop(folder / "fabric", module, callbacks=callbacks, **{**settings, **changes}).fit()
    return module


def under_trainer(folder: Path, callbacks: list[Any], **changes: Any) -> PPOModule:
    """Do the same under `lightning.Trainer`."""
    module = tiny_module()
    seed_everything(SEED, verbose=False)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": any(isinstance(item, ModelCheckpoint) for item in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder / "trainer",
    }
    Trainer(**{**settings, **changes}, callbacks=callbacks).fit(module, datamodule=tiny_data())
    return module
