"""`ippo diagnose`, `ippo trace` and `ippo intervene`: from a run that kept its buffers to one page."""

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
from ippo_lightning.storage.output_folders import refuse_run_folder
from ippo_lightning.storage.public_command import public_command
from ippo_lightning.storage.terminal_lines import broken_between_words
from ippo_lightning.storage.untrusted_text import visible_text

if TYPE_CHECKING:
    from jsonargparse import Namespace

Analysis = Callable[[RepeatedRounds, Path, Any], Path]
"""Takes the repeated rounds, the folder of the run and the settings; returns the page."""
_WIDTH = 80
_ONE_DEVICE = ("--fabric.devices=1", "--fabric.num_nodes=1", "--fabric.strategy=auto", "--fabric.loggers=[]")


def run_analysis(name: str, given: Namespace, words: Sequence[str]) -> None:
    """Run one of the three commands.

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
    parser, experiment = experiment_of(run_dir, *_ONE_DEVICE, given=words)
    experiment[experiment.subcommand].callbacks = None
    rounds = RepeatedRounds(build_loop(parser, experiment), first)
    try:
        page = _ANALYSES[name](rounds, run_dir, settings)
    finally:
        rounds.module.close()
    print(visible_text(str(page)))


def _diagnose(rounds: RepeatedRounds, run_dir: Path, settings: Any) -> Path:
    from ippo_lightning.analysis.diagnosed_round import diagnose_round
    from ippo_lightning.analysis.diagnosis_page import write_diagnosis
    from ippo_lightning.analysis.diagnosis_words import terminal_lines

    iteration = kept_rounds(run_dir)[-1] if settings.iteration is None else settings.iteration
    output = Path(settings.output) if settings.output else run_dir / "diagnosis" / f"iteration_{iteration:07d}"
    refuse_run_folder("output", output)
    diagnosed = diagnose_round(
        rounds,
        read_round(run_dir, iteration),
        count=settings.records,
        target=settings.target,
        baseline=settings.baseline,
        seed=settings.seed,
    )
    words = ["ippo", "diagnose", str(run_dir), *_as_words(settings, iteration=iteration)]
    page = write_diagnosis(
        diagnosed, output, run=run_dir.resolve().name, command=public_command(words), seed=settings.seed
    )
    for line in terminal_lines(diagnosed):
        print(visible_text(broken_between_words(line, _WIDTH), multiline=True))
    return page


def _as_words(settings: Any, *, iteration: int) -> list[str]:
    """Return the options of a command that are not its defaults, and the iteration that it took."""
    given = {**vars(settings), "iteration": iteration}
    defaults = vars(type(settings)())
    return [word for name, value in given.items() if value != defaults[name] for word in (f"--{name}", str(value))]


def _not_built(rounds: RepeatedRounds, run_dir: Path, settings: Any) -> Path:
    raise UserError("not built yet")


_ANALYSES: Mapping[str, Analysis] = {"diagnose": _diagnose, "trace": _not_built, "intervene": _not_built}
