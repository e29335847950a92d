"""`ippo diagnose` and `ippo trace`: from a run that kept its buffers to one page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ippo_lightning.analysis import RepeatedRounds, kept_rounds, read_round
from ippo_lightning.analysis.page_links import link_pages
from ippo_lightning.cli.analysis_settings import SETTINGS
from ippo_lightning.cli.building import build_loop
from ippo_lightning.cli.commands import experiment_of
from ippo_lightning.cli.trust import CODE, REMOTE_CODE
from ippo_lightning.records.kept_rounds import KeptRound
from ippo_lightning.storage.output_folders import make_writable, refuse_run_folder
from ippo_lightning.storage.public_command import public_command
from ippo_lightning.storage.run_folder import DIAGNOSIS, TRACE
from ippo_lightning.storage.terminal_lines import broken_between_words
from ippo_lightning.storage.untrusted_text import visible_text

if TYPE_CHECKING:
    from jsonargparse import Namespace

Analysis = Callable[[RepeatedRounds, Path, Any], Path]
"""Takes the repeated rounds, the folder of the run and the settings; returns the page."""
_WIDTH = 80
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
    if name == "trace":
        settings.check_run(run_dir)
    first = read_round(run_dir, kept_rounds(run_dir)[-1] if wanted is None else wanted)
    require_place(output_of(name, settings, run_dir))
    rounds = repeated_rounds(run_dir, first, words)
    try:
        page = _ANALYSES[name](rounds, run_dir, settings)
    finally:
        rounds.module.close()
    link_pages(run_dir)
    print(visible_text(str(page)))


def output_of(name: str, settings: Any, run_dir: Path) -> Path:
    """Return the folder of a page: one for each iteration, or each behaviour.

    Args:
        name: of the command, `diagnose` or `trace`.
        settings: of the command.
        run_dir: folder of a run that kept its buffers.
    """
    if settings.output:
        return Path(settings.output)
    if name == "trace":
        return run_dir / TRACE / _name_of_behaviour(settings.behaviour)
    iteration = kept_rounds(run_dir)[-1] if settings.iteration is None else settings.iteration
    return run_dir / DIAGNOSIS / f"iteration_{iteration:07d}"


def _name_of_behaviour(given: str | None) -> str:
    """Return a name of a folder: `14_2`, `record_5_17`, that of a file, or `chosen`."""
    if given is None:
        return "chosen"
    words = given
    with suppress(OSError):  # a text that is too long for a name
        words = Path(given).stem if Path(given).is_file() else given
    return re.sub(r"[^A-Za-z0-9]+", "_", words).strip("_")[:_LONGEST_NAME] or "behaviour"


_LONGEST_NAME = 40


def require_place(output: Path) -> None:
    """Refuse a folder that no page can be written into, before hours of work.

    Args:
        output: it may be missing; then it is made.

    Raises:
        UserError: it is the folder of a run or a part of one, or cannot be written into.
    """
    refuse_run_folder("output", output)
    make_writable("output", output)


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
    from ippo_lightning.analysis.diagnosed_round import diagnose_round
    from ippo_lightning.analysis.diagnosis_page import write_diagnosis
    from ippo_lightning.analysis.diagnosis_words import terminal_lines

    iteration = kept_rounds(run_dir)[-1] if settings.iteration is None else settings.iteration
    output = output_of("diagnose", settings, run_dir)
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


def _trace(rounds: RepeatedRounds, run_dir: Path, settings: Any) -> Path:
    from ippo_lightning.analysis.behaviour_words import read_behaviour
    from ippo_lightning.analysis.grid_map import map_of
    from ippo_lightning.analysis.trace_page import write_trace
    from ippo_lightning.analysis.trace_words import terminal_lines
    from ippo_lightning.analysis.traced_rounds import TraceOptions, chosen_iterations, trace_behaviour

    output = output_of("trace", settings, run_dir)
    environments = getattr(rounds.module, "rollouts", None)
    options = TraceOptions(
        iterations=chosen_iterations(run_dir, first=settings.first, last=settings.last, every=settings.every),
        scores=settings.scores or ("start" if environments is None else "round"),
        neighbours=settings.neighbours,
        top=settings.top,
        seed=settings.seed,
    )
    named = None if settings.behaviour is None else read_behaviour(settings.behaviour)
    trace = trace_behaviour(rounds, run_dir, named=named, options=options, say=print)
    words = ["ippo", "trace", str(run_dir), *_as_words(settings)]
    page = write_trace(
        trace,
        output,
        run=run_dir.resolve().name,
        command=public_command(words),
        grid=None if environments is None else map_of(environments.settings),
    )
    for line in terminal_lines(trace):
        print(broken_between_words(line, _WIDTH))
    return page


def _as_words(settings: Any, **taken: object) -> list[str]:
    """Return the options of a command that are not its defaults, and what it took for those that were left open."""
    given = {**vars(settings), **taken}
    defaults = vars(type(settings)())
    return [word for name, value in given.items() if value != defaults[name] for word in (f"--{name}", str(value))]


_ANALYSES: Mapping[str, Analysis] = {"diagnose": _diagnose, "trace": _trace}
