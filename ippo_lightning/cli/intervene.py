"""`ippo intervene RUN ...`: iterations trained again without their negative records, of one run or several seeds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console

import ippo_lightning
from ippo_lightning.analysis import RepeatedRounds, kept_rounds, read_round
from ippo_lightning.analysis.intervened_rounds import DoneRounds
from ippo_lightning.analysis.intervention import Intervened, Sizes, intervene
from ippo_lightning.analysis.intervention_page import write_intervention
from ippo_lightning.analysis.intervention_summary import Outcomes, summary_lines
from ippo_lightning.analysis.page_links import link_pages
from ippo_lightning.analysis.test_numbers import TestNumbers
from ippo_lightning.cli.analyses import repeated_rounds, require_place
from ippo_lightning.cli.analysis_settings import InterveneSettings
from ippo_lightning.cli.evaluate_runs import labels
from ippo_lightning.cli.trust import CODE, REMOTE_CODE
from ippo_lightning.cli.yaml_text import load_yaml
from ippo_lightning.errors import UserError
from ippo_lightning.report.display import signed
from ippo_lightning.run.progress import ProgressBar
from ippo_lightning.storage.checksums import digest_of
from ippo_lightning.storage.iteration_files import buffer_path
from ippo_lightning.storage.locks import FolderLock, hold
from ippo_lightning.storage.public_command import public_command
from ippo_lightning.storage.run_folder import CONFIG, INTERVENTION, JsonObject
from ippo_lightning.storage.terminal_lines import broken_between_words, terminal_width
from ippo_lightning.storage.untrusted_text import visible_text

if TYPE_CHECKING:
    from jsonargparse import Namespace

_OWN_OF_A_RUN = ("seed_everything", "loop", "fabric", "callbacks")
"""Sections in which runs of one configuration may differ."""


class _Run(NamedTuple):
    """One run and the iterations that are wanted of it."""

    name: str
    folder: Path
    iterations: Sequence[int]


def run_intervention(given: Namespace, words: Sequence[str]) -> None:
    """Run `ippo intervene`.

    Args:
        given: the parsed settings, which change.
        words: as the user typed them.

    Raises:
        UserError: a run kept no buffers, the runs are of several configurations, or a setting does not fit.
        KeyboardInterrupt: after Ctrl-C; the iterations that are done stay.
    """
    folders = [Path(run) for run in given.pop("runs")]
    for option in (CODE, REMOTE_CODE):
        given.pop(option)
    settings = InterveneSettings(**given.as_dict())
    # All runs are checked before the first one takes hours.
    runs = [
        _Run(name, folder, _wanted(folder, settings)) for name, folder in zip(labels(folders), folders, strict=True)
    ]
    _require_one_configuration(folders)
    output = Path(settings.output) if settings.output else folders[0] / INTERVENTION
    place = output if settings.output else output / _name_of_page(settings, len(folders))
    lock = _begin(output)
    try:
        page, outcomes = _intervene(runs, settings, output, place, words)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"what is done stays in {output}; the same command goes on from there") from error
    finally:
        lock.release()
    link_pages(folders[0])
    _print(outcomes, page)


def _name_of_page(settings: InterveneSettings, runs: int) -> str:
    """Return the folder of the page, so that those of other iterations stay."""
    every = "all_iterations" if settings.every == 1 else f"every_{settings.every}"
    name = every if settings.iteration is None else f"iteration_{settings.iteration:07d}"
    return name if runs == 1 else f"{name}_of_{runs}_runs"


def _wanted(folder: Path, settings: InterveneSettings) -> list[int]:
    there = kept_rounds(folder)
    if settings.iteration is None:
        return there[:: settings.every]
    read_round(folder, settings.iteration)
    return [settings.iteration]


def _require_one_configuration(folders: Sequence[Path]) -> None:
    """Refuse runs whose differences cannot be pooled: of another model, environment, or test."""
    contents = [_configuration(folder) for folder in folders]
    for folder, content in zip(folders[1:], contents[1:], strict=True):
        for name in sorted(contents[0].keys() | content.keys()):
            if contents[0].get(name) != content.get(name):
                raise UserError(
                    f"runs: {folders[0]} and {folder} differ in {name}; expected seeds of one configuration"
                )


def _configuration(folder: Path) -> Mapping[str, Any]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"run: {folder} has no {CONFIG}; expected the folder of a run of `ippo fit`")
    text = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
    found = load_yaml(text, origin=str(folder / CONFIG))
    return {key: value for key, value in found.items() if key not in _OWN_OF_A_RUN} if isinstance(found, dict) else {}


def _begin(output: Path) -> FolderLock:
    require_place(output)
    lock = hold(output)
    if lock is None:
        raise UserError(f"output: another process writes into {output}; wait for it, or name another folder")
    return lock


def _intervene(
    runs: Sequence[_Run], settings: InterveneSettings, output: Path, place: Path, words: Sequence[str]
) -> tuple[Path, Outcomes]:
    """Do what is missing, run by run, into `output`, and write the page into `place` after each run."""
    total = sum(len(run.iterations) for run in runs)
    found: dict[str, list[Intervened]] = {}
    with ProgressBar(enabled=True, total=total, title="intervene") as bar:
        for run in runs:
            rounds = repeated_rounds(run.folder, read_round(run.folder, run.iterations[0]), words)
            with closing(rounds.module):
                test = TestNumbers(rounds.loop, settings.episodes)
                found[run.name] = _one_run(
                    run,
                    rounds,
                    test=test,
                    settings=settings,
                    output=output,
                    bar=bar,
                    before=sum(map(len, found.values())),
                )
            outcomes = Outcomes(
                runs=found,
                unit=test.unit,
                noun=test.noun,
                settings=_shown_settings(settings, test, words),
            )
            page = write_intervention(outcomes, place)
    return page, outcomes


def _one_run(
    run: _Run,
    rounds: RepeatedRounds,
    *,
    test: TestNumbers,
    settings: InterveneSettings,
    output: Path,
    bar: ProgressBar,
    before: int,
) -> list[Intervened]:
    """Return the iterations of a run; those that an earlier command has done are read."""
    sizes = Sizes(repeats=settings.repeats, draws=settings.draws, seed=settings.seed, with_own=settings.own)
    done = DoneRounds(output, _bound_to(run, sizes, test))
    earlier, found = done.read(), []
    for number, iteration in enumerate(run.iterations, start=before):
        buffer = digest_of(buffer_path(run.folder, iteration=iteration, rank=0))
        one = earlier.get((buffer, iteration))
        if one is None:
            # Only here: the time that is left is estimated from what was trained, not from what was read.
            bar.update(completed=number, numbers={})
            one = intervene(rounds, read_round(run.folder, iteration), test=test, sizes=sizes)
            done.add(buffer, one)
            bar.say(f"{_line(run, one)}{bar.left(number + 1)}")
        found.append(one)
    bar.update(completed=before + len(found), numbers={})
    return found


def _bound_to(run: _Run, sizes: Sizes, test: TestNumbers) -> JsonObject:
    """Return what the numbers of an iteration depend on beside its file, as JSON."""
    return {
        **asdict(sizes),
        "episodes": test.count,
        "config": digest_of(run.folder / CONFIG),
        "device": test.loop.fabric.device.type,
        "versions": [ippo_lightning.__version__, torch.__version__],
    }


def _line(run: _Run, one: Intervened) -> str:
    where = f"{run.name}, iteration {one.iteration}"
    if one.skipped:
        return f"{where}: left out, {one.skipped}"
    means = {name: signed(found.mean) for name, found in one.differences().items()}
    return f"{where}: without negatives {means['without_negatives']}, random drop {means['random_drop']}"


def _shown_settings(settings: InterveneSettings, test: TestNumbers, words: Sequence[str]) -> dict[str, Any]:
    return {
        "orders of minibatches": settings.repeats,
        "random drops": settings.draws,
        f"test {test.noun}s": test.count,
        "seed": settings.seed,
        "command": public_command(["ippo", *words]),
    }


def _print(outcomes: Outcomes, page: Path) -> None:
    console = Console()
    for line in summary_lines(outcomes):
        text = broken_between_words(visible_text(line), min(terminal_width(sys.stdout) or 80, 80))
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(visible_text(f"Page: {page}"), soft_wrap=True, markup=False, highlight=False)
