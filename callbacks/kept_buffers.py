"""Keep what repeats the update of an iteration: its rows, and parameters and optimizer before the update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import rank, world_size
from ippo_lightning.distributed.dtensor import full_on_rank_zero
from ippo_lightning.errors import UserError
from ippo_lightning.records import UpdateStats
from ippo_lightning.records.kept_rounds import KNOWN, KeptRound
from ippo_lightning.storage.atomic import write_whole
from ippo_lightning.storage.iteration_files import buffer_path

_NEEDED = ("trained_parameters", "only_optimizer", "progress_state")


class BufferKeeper:
    """Writes one file per rank and iteration into the folder `buffers` of the run.

    On the CPU it holds a copy of the trained parameters and of the optimizer's state during an iteration. All ranks
    must call both methods, because sharded parameters are gathered.
    """

    def __init__(self) -> None:
        self._start: dict[str, Any] = {}

    @staticmethod
    def check(module: object, *, callbacks: Iterable[object] = ()) -> None:
        """Refuse a module or callbacks whose update cannot be repeated.

        Args:
            module: any.
            callbacks: of the run.

        Raises:
            UserError: the module has no trained parameters, optimizer or counters under their names, or a callback
                decides about each minibatch, which no buffer keeps.
        """
        missing = [name for name in _NEEDED if not callable(getattr(module, name, None))]
        if missing:
            raise UserError(
                f"EpisodeLog.keep_buffers: {type(module).__name__} has no {missing[0]}; expected a PPOModule or a "
                "ControlPPOModule, or false"
            )
        deciding = [one for one in callbacks if callable(getattr(one, "on_minibatch_start", None))]
        names = [type(one).__name__ for one in deciding if getattr(one, "changes_minibatches", True)]
        if names:
            raise UserError(
                f"EpisodeLog.keep_buffers: {names[0]} decides about each minibatch (score_at), and buffers "
                "keep the weights of the rollout only; expected score_at: rollout_end, or false"
            )

    def begin(self, module: Any) -> None:
        """Copy parameters and optimizer, before the rollout.

        Args:
            module: that passed `check`.
        """
        scaler = module.backend.scaler
        self._start = {
            "parameters": _copied({name: p.detach() for name, p in module.trained_parameters().items()}),
            "optimizer": _copied(module.only_optimizer().state_dict()),
            "scaler": {} if scaler is None else dict(scaler.state_dict()),
        }

    def write(self, folder: Path, module: Any, stats: UpdateStats) -> None:
        """Write the iteration, after its update.

        Args:
            folder: of the run.
            module: as in `begin`.
            stats: of the iteration.

        Raises:
            UserError: the rows are of an unknown kind.
            OSError: the file cannot be written.
        """
        if type(stats.plan.episodes).__name__ not in KNOWN:
            found = type(stats.plan.episodes).__name__
            raise UserError(f"EpisodeLog.keep_buffers: rows are {found}; expected one of {', '.join(KNOWN)}, or false")
        start, self._start = self._start, {}
        round_ = KeptRound(
            iteration=stats.iteration,
            num_ranks=world_size(),
            episodes=stats.plan.episodes,
            history=tuple(stats.plan.history),
            trains_policy=stats.plan.trains_policy,
            progress=module.progress_state(),
            random=stats.random,
            fingerprint=getattr(module.backend.host, "fingerprint", ""),
            **start,
        )
        content = round_.content()
        write_whole(buffer_path(folder, iteration=stats.iteration, rank=rank()), lambda file: torch.save(content, file))


def _copied(state: Mapping[Any, Any]) -> dict[str, Any]:
    """Return full tensors on the CPU that no later step changes; empty on other ranks than 0."""
    # Every rank takes part: a sharded tensor is gathered.
    full = full_on_rank_zero(state)
    return _cloned(full) if rank() == 0 else {}


def _cloned(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: _cloned(value) for key, value in state.items()}
    return type(state)(_cloned(value) for value in state) if isinstance(state, (list, tuple)) else state
