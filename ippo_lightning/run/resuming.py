"""What a resumed run does with settings that are not those of the checkpoint: it applies them, or it is refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor
from torch.optim import Optimizer

from ippo_lightning.data.loaders import TextRows
from ippo_lightning.distributed.dtensor import sharded_like
from ippo_lightning.errors import UserError
from ippo_lightning.records.digests import batch_digest
from ippo_lightning.run.lightning_hooks import errors_named
from ippo_lightning.run.stable_text import digest, stable_text

_SAMPLED = 256
"""Rows that identify the data: with millions of them, all would take long at every start."""


class SavedCallback(TypedDict):
    """The state of one callback, and what finds it again."""

    name: str
    """Lightning's `state_key`."""
    settings: str
    """Digest of what the callback was built with."""
    state: dict[str, Any]


class Data(TypedDict):
    """What the position in the training data is counted in."""

    num_rows: int
    """-1 if unknown."""
    rows: str
    """Digest of evenly spaced rows; empty if they are not in memory. Then the digest of the last batch protects."""
    batch_size: int
    """On each rank; -1 if unknown."""
    seed: int
    """Of the run."""


# --- optimizer -------------------------------------------------------------------------------------------


def optimizer_name(optimizer: Optimizer) -> str:
    """Return the name of an optimizer's class, without Fabric's wrapper around it."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], *, name: str | None, source: Path) -> None:
    """Continue with an optimizer's moments, and with the rates, betas, epsilon and weight decay of this run.

    Args:
        optimizer: as built for this run.
        state: its `state_dict` of the checkpoint, in full.
        name: `optimizer_name` of the saved one; None for a checkpoint that does not tell.
        source: names the file in errors.

    Raises:
        UserError: the saved one is of another kind, or has other parameters.
    """
    mine = optimizer_name(optimizer)
    if name is not None and name != mine:
        raise UserError(
            f"optimizer.kind: {source} has the moments of {name}, and this run has {mine}; expected the same kind"
        )
    sizes = [[len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)]
    if sum(sizes[0]) != sum(sizes[1]):  # the optimizer puts the same parameters into its own groups
        raise UserError(
            f"optimizer: {source} has groups of {sizes[0]} parameters, and this run has {sizes[1]}; "
            "expected the same policy and value function"
        )
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(_sharded(state, optimizer))
    # `load_state_dict` has brought the saved rates back, also where the user has changed them since.
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def _sharded(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Shard an optimizer's saved tensors as its parameters are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    owners = dict(zip(numbers, parameters, strict=True))

    def sharded(number: int, entry: Any) -> Any:
        # Moments have the shape of their parameter; the count of steps is a number, which each rank keeps in full.
        is_of_parameter = isinstance(entry, Tensor) and entry.shape == owners[number].shape
        return sharded_like(entry, owners[number]) if is_of_parameter else entry

    per_parameter = {
        number: {name: sharded(number, entry) for name, entry in entries.items()}
        for number, entries in state["state"].items()
    }
    return {**state, "state": per_parameter}


# --- callbacks -------------------------------------------------------------------------------------------


def callback_settings(callbacks: Sequence[object]) -> list[str]:
    """Return a digest of what each callback was built with; call this before the run changes their attributes."""
    return [digest(stable_text(vars(item)) if hasattr(item, "__dict__") else "") for item in callbacks]


def saved_callbacks(callbacks: Sequence[object], settings: Sequence[str]) -> list[SavedCallback]:
    """Return the states of callbacks.

    Args:
        callbacks: an object with hooks and without Lightning's base class is a callback, too; it may have no state.
        settings: from `callback_settings`.
    """
    return [
        {"name": _name(item), "settings": own, "state": _state_of(item)}
        for item, own in zip(callbacks, settings, strict=True)
    ]


def _state_of(callback: Any) -> dict[str, Any]:
    if not hasattr(callback, "state_dict"):
        return {}
    with errors_named(f"{type(callback).__name__}.state_dict"):
        state: dict[str, Any] = callback.state_dict()
    return state


def load_callbacks(callbacks: Sequence[object], settings: Sequence[str], saved: Sequence[SavedCallback]) -> None:
    """Give each callback the state of its predecessor, whatever their order: same settings first, then same name.

    Args:
        callbacks: of this run.
        settings: from `callback_settings`.
        saved: of the checkpoint.

    Warns:
        UserWarning: a callback has no predecessor, or a state has no callback.
    """
    left = list(saved)
    waiting = list(zip(callbacks, settings, strict=True))
    for is_exact in (True, False):
        for item, own in tuple(waiting):
            found = next(
                (one for one in left if one["name"] == _name(item) and (own == one["settings"] or not is_exact)), None
            )
            if found is None:
                continue
            left.remove(found)
            waiting.remove((item, own))
            if found["state"]:
                with errors_named(f"{type(item).__name__}.load_state_dict"):
                    item.load_state_dict(found["state"])  # type: ignore[attr-defined]
    for item, _ in waiting:
        if hasattr(item, "load_state_dict") and _has_state(item):
            warnings.warn(
                f"resume: the checkpoint has no state of {_name(item)}, which starts from nothing", stacklevel=2
            )
    for one in left:
        if one["state"]:
            warnings.warn(
                f"resume: this run has no {one['name']}; its state in the checkpoint is not used", stacklevel=2
            )


def _name(callback: object) -> str:
    return str(getattr(callback, "state_key", type(callback).__qualname__))


def _has_state(callback: Any) -> bool:
    return bool(_state_of(callback))


# --- data ------------------------------------------------------------------------------------------------


def data_of(loader: Any, *, seed: int) -> Data:
    """Return what identifies the training data of a run.

    Args:
        loader: any iterable of batches; those of a `DataLoader` over a data set with a length tell most.
        seed: of the run; the order of the rows depends on it.
    """
    source = getattr(loader, "dataset", loader)
    try:
        count = len(source)
    except Exception:  # an iterable has no length; a user's data set may raise anything
        count = -1
    # Only rows in memory: to read others may open files before workers are forked, or draw at random.
    rows = source.rows if isinstance(source, TextRows) else source
    chosen = None
    if type(rows) in (list, tuple):
        chosen = [rows[index * count // min(count, _SAMPLED)] for index in range(min(count, _SAMPLED))]
    return {
        "num_rows": count,
        "rows": "" if chosen is None else f"{batch_digest(chosen):x}",
        "batch_size": int(getattr(loader, "batch_size", None) or -1),
        "seed": seed,
    }


def check_data(mine: Data, saved: Data | None, *, source: Path) -> None:
    """Refuse to continue in the middle of other data: the position of the checkpoint would be of other rows.

    Args:
        mine: of this run.
        saved: of the checkpoint; None if it does not tell.
        source: names the file in errors.

    Raises:
        UserError: rows, batch size or seed differ.
    """
    if saved is None or mine == saved:
        return
    names = {"batch_size": "data.batch_size", "seed": "seed_everything", "num_rows": "data"}
    for key, field in names.items():
        if mine[key] != saved[key]:  # type: ignore[literal-required]
            what = " training rows" if key == "num_rows" else ""
            raise UserError(
                f"{field}: {source} has {saved[key]}{what}, and this run has {mine[key]}; "  # type: ignore[literal-required]
                "a resumed run continues in the same data"
            )
    raise UserError(f"data: the training rows are not those of {source}; a resumed run continues in the same data")
