"""Tiny runs that keep their buffers, and what repeats their rounds."""

from __future__ import annotations

from pathlib import Path

from ippo_lightning.analysis import RepeatedRounds
from ippo_lightning.cli.building import build_loop
from ippo_lightning.cli.commands import experiment_of
from ippo_lightning.records.kept_rounds import KeptRound

FROZEN_LAKE = [
    *("fit", "--task", "frozenlake", "--model.init_args.num_steps", "64", "--loop.max_iterations", "3"),
    *("--data.init_args.evaluation_episodes", "1", "--data.init_args.test_episodes", "1"),
    *("--loop.progress_bar", "false"),
]
"""Words of a run of a second."""


def rounds_of(run: Path, round_: KeptRound) -> RepeatedRounds:
    """What `ippo diagnose` builds of a run."""
    parser, experiment = experiment_of(run, "--fabric.loggers=[]", given=["diagnose", str(run)])
    experiment[experiment.subcommand].callbacks = None
    return RepeatedRounds(build_loop(parser, experiment), round_)
