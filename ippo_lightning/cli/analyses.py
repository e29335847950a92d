"""`ippo diagnose` and `ippo trace`: from a run that kept its buffers to one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ippo_lightning.analysis import RepeatedRounds, kept_rounds, read_round
from ippo_lightning.cli.analysis_settings import SETTINGS
from ippo_lightning.cli.building import build_loop
from ippo_lightning.cli.commands import experiment_of
from ippo_lightning.cli.trust import CODE, REMOTE_CODE
from ippo_lightning.errors import UserError
from ippo_lightning.records.kept_rounds import KeptRound

if TYPE_CHECKING:
    from jsonargparse import Namespace

Analysis = Callable[[RepeatedRounds, Path, Any], Path]
"""Takes the repeated rounds, the folder of the run and the settings; returns the page."""
_ONE_DEVICE = ("--fabric.devices=1", "--fabric.num_nodes=1", "--fabric.strategy=auto", "--fabric.loggers=[]")


def run_analysis(name: str, given: Namespace, words: Sequence[str]) -> None:
    """Run one of the two commands.

    Args:
        name: of the command.
        given: the parsed settings, which change.
        words: as the user typed them.

    Raises:
        UserError: the run kept no buffers, or a setting does not fit it.
    """
    run_dir = Path(given.pop("run"))
    for option in (CODE, REMOTE_CODE):
        given.pop(option)
    settings = SETTINGS[name](**given.as_dict())
    # before the experiment, which takes seconds to build
    wanted = getattr(settings, "iteration", None)
    first = read_round(run_dir, kept_rounds(run_dir)[-1] if wanted is None else wanted)
    rounds = repeated_rounds(run_dir, first, words)
    try:
        page = _ANALYSES[name](rounds, run_dir, settings)
    finally:
        rounds.module.close()
    print(page)


def repeated_rounds(run_dir: Path, first: KeptRound, words: Sequence[str]) -> RepeatedRounds:
    """Build a run's module, data and loop on one device, to repeat its iterations.

    Args:
        run_dir: folder of the run.
        first: any kept iteration of it.
        words: as the user typed them.
    """
    parser, experiment = experiment_of(run_dir, *_ONE_DEVICE, given=words)
    experiment[experiment.subcommand].callbacks = None
    return RepeatedRounds(build_loop(parser, experiment), first)


def _diagnose(rounds: RepeatedRounds, run_dir: Path, settings: Any) -> Path:
    raise UserError("diagnose: not built yet")


_ANALYSES: Mapping[str, Analysis] = {"diagnose": _diagnose, "trace": _diagnose}
