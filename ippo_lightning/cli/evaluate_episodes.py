"""`ippo evaluate RUN` of a run in environments: episodes of its policy, with their mean return and its interval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import numpy as np
import pyarrow
import torch
from pyarrow import parquet

import ippo_lightning
from ippo_lightning.cli.evaluated_model import EvaluationJob
from ippo_lightning.cli.evaluation_table import Column
from ippo_lightning.cli.settings import EvaluateSettings
from ippo_lightning.distributed.collectives import world_size
from ippo_lightning.errors import UserError
from ippo_lightning.modules import ControlPPOModule
from ippo_lightning.report.ratio_intervals import Ratio
from ippo_lightning.run.checkpoints import weights_fingerprint
from ippo_lightning.run.evaluation_folder import EvaluationFolder, evaluation_name
from ippo_lightning.run.evaluation_numbers import numbers
from ippo_lightning.run.fabric_loop import FabricLoop
from ippo_lightning.run.loaders import LoaderStream, loader_of
from ippo_lightning.storage.atomic import write_whole
from ippo_lightning.storage.run_folder import EVALUATED, PLAYED, START, RunFolder

if TYPE_CHECKING:
    from jsonargparse import Namespace

_OF_RESPONSES = ("samples", "temperature", "max_new_tokens", "batch_size", "k")
_COUNTS = {"test": "test_episodes", "validation": "evaluation_episodes"}


def use_episodes(experiment: Namespace, settings: EvaluateSettings) -> None:
    """Let the data of a parsed experiment have as many episodes as the user has given.

    Args:
        experiment: changed in place.
        settings: `episodes` and `split` are read.

    Raises:
        UserError: the data have no number of episodes.
    """
    if settings.episodes is None:
        return
    arguments: Any = (experiment.data or {}).get("init_args") or {}
    name = _COUNTS[settings.split]
    if name not in arguments:
        raise UserError(f"episodes: {settings.episodes} are of a run in environments, and the data of this run are not")
    arguments[name] = settings.episodes


def evaluate_episodes(loop: FabricLoop, job: EvaluationJob, settings: EvaluateSettings, *, digest: str) -> Column:
    """Play the episodes of a split, write each of them and their numbers, and return the column of the table.

    Without any option the numbers of a run on one rank are those that it ended with: the same seeds and random streams.

    Args:
        loop: of the run; its module is a `ControlPPOModule`.
        job: the run, its policy, and where the results go.
        settings: `split` and `episodes` are read.
        digest: of the data.

    Raises:
        UserError: an option of responses is given, there are several processes, or the results have no place.
    """
    module = _control_module(loop.module, settings)
    path = loop.set_up_evaluation(job.model.checkpoint)
    if world_size() > 1:
        raise UserError(
            f"fabric.devices: {world_size()}, and the episodes of an evaluation are played by one; expected 1"
        )
    (batch,) = LoaderStream(0).run(lambda: list(loader_of(loop.datamodule, settings.split)))
    described = _described(loop, module, run=job.run, checkpoint=path)
    described |= {"split": settings.split, "episodes": len(batch["seeds"]), "task_sha256": digest}
    word = START if path is None else path.stem
    place = job.output or job.run / EVALUATED / evaluation_name(described, split=settings.split, model=word)
    folder = EvaluationFolder(place, sizes=())
    folder.begin(described)
    try:
        # As in the run's own evaluation: one batch, in its random stream.
        with torch.no_grad(), loop.fabric.autocast(), module.evaluation_stream(0, of_rank=0):
            played = cast("list[tuple[float, int]]", module.sample(batch))
        column = _column(job, seeds=batch["seeds"], played=played, folder=place, settings=described)
        _write(place / PLAYED, seeds=batch["seeds"], played=played)
        content = {"run": str(job.run), "settings": json.loads(json.dumps(described)), "numbers": column.numbers}
        folder.write_numbers({**content, "items": PLAYED})
    finally:
        folder.release()
    return column


def _control_module(module: object, settings: EvaluateSettings) -> ControlPPOModule:
    for option in _OF_RESPONSES:
        if getattr(settings, option) is not None:
            raise UserError(
                f"{option}: {getattr(settings, option)} is of responses to prompts, and this run plays episodes in "
                "environments; their number is --episodes"
            )
    if not isinstance(module, ControlPPOModule):
        raise UserError(f"model: {type(module).__name__} plays episodes in a way of its own; expected ControlPPOModule")
    return module


def _described(loop: FabricLoop, module: ControlPPOModule, *, run: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Return what the episodes depend on, as JSON: two evaluations with the same are the same."""
    name = START
    if checkpoint is not None:
        inside = checkpoint.resolve().is_relative_to(run.resolve())
        name = checkpoint.resolve().relative_to(run.resolve()).as_posix() if inside else str(checkpoint)
    return {
        "model": {
            "name": name,
            "began_with": None,
            "iteration": None if checkpoint is None else module.iteration,
            "weights": weights_fingerprint(module.policy),
        },
        "environment": asdict(module.rollouts.settings),
        "greedy": module.greedy_evaluation,
        "seed": module.evaluation_seed,
        "precision": str(loop.fabric.strategy.precision.precision),
        "device": loop.fabric.device.type,
        "versions": {
            "ippo-lightning": ippo_lightning.__version__,
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


def _column(
    job: EvaluationJob,
    *,
    seeds: Sequence[int],
    played: Sequence[tuple[float, int]],
    folder: Path,
    settings: Any,
) -> Column:
    returns, lengths = (np.array(values, dtype=np.float64) for values in zip(*played, strict=True))
    ones = np.ones(len(played))
    found = {"episode_return": Ratio(returns, ones), "episode_length": Ratio(lengths, ones)}
    environment = settings["environment"]["id"]
    how = "most probable actions" if settings["greedy"] else "drawn actions"
    return Column(
        name=job.name,
        run=job.run,
        folder=folder,
        settings=settings,
        is_finished=RunFolder(job.run).has_ended(),
        # An episode of another environment is another one, also if it has the same seed.
        prompts=[(str(seed), json.dumps(settings["environment"], sort_keys=True)) for seed in seeds],
        ratios=found,
        numbers=numbers(found),
        size=f"{len(played)} episodes of {environment}, {how}",
        unit="episodes",
    )


def _write(path: Path, *, seeds: Sequence[int], played: Sequence[tuple[float, int]]) -> None:
    returns, lengths = zip(*played, strict=True)
    table = pyarrow.table({"seed": list(seeds), "episode_return": returns, "episode_length": lengths})
    write_whole(path, lambda file: parquet.write_table(table, file, write_page_checksum=True, use_dictionary=False))
