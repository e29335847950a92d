"""What each command does with its parsed settings. Each imports what it needs when it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ippo_lightning.cli.building import build_loop, build_objects, vars_of
from ippo_lightning.cli.experiment_paths import FOLDERS
from ippo_lightning.cli.quick_check import check_command
from ippo_lightning.cli.run_ending import ending_lines
from ippo_lightning.cli.run_words import EVALUATE_RUNS
from ippo_lightning.cli.settings import CompareSettings, ExportSettings, MethodSettings, ReplaySettings
from ippo_lightning.cli.trust import CODE, REMOTE_CODE, check_trust, search_working_folder, without_trust
from ippo_lightning.cli.usage_hints import near_folder
from ippo_lightning.errors import UserError
from ippo_lightning.storage.metric_names import shown_metric
from ippo_lightning.storage.output_folders import refuse_model_folder, require_writable
from ippo_lightning.storage.own_runs import remember_run
from ippo_lightning.storage.public_command import public_command
from ippo_lightning.storage.run_folder import CONFIG, READABLE, RESULTS, RunFolder
from ippo_lightning.storage.untrusted_text import visible_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def fit(parser: ArgumentParser, settings: Namespace, words: Sequence[str]) -> None:
    """Run `ippo fit`."""
    from ippo_lightning.distributed.collectives import end_process_group

    loop = build_loop(parser, settings)
    loop.command = public_command(["ippo", *words])
    # the user has chosen to run this, so `--resume`, `export` and `evaluate` need not ask what it may run
    remember_run(loop.config)
    results = loop.fit()
    # all ranks come here, and one of them prints
    if loop.is_global_zero:
        if results:
            print_metrics(results, title=f"test, {loop.folder.path}", k=loop.module.describe_evaluation().get("k"))
        print(visible_text("\n".join(ending_lines(loop.folder, evaluates=loop.module.evaluates)), multiline=True))
    end_process_group()


def evaluate(parser: ArgumentParser, settings: Namespace, _: Sequence[str]) -> None:
    """Run `ippo evaluate`."""
    from ippo_lightning.distributed.collectives import end_process_group

    chosen = settings.evaluate
    if chosen.output:
        refuse_to_replace(Path(chosen.output))
        require_writable("output", Path(chosen.output).parent)
    loop = build_loop(parser, settings)
    checkpoint = loop.set_up_evaluation(chosen.checkpoint)
    metrics = loop.evaluate(chosen.split)
    if loop.is_global_zero:
        title = chosen.split if checkpoint is None else f"{chosen.split}, {checkpoint.name}"
        print_metrics(metrics, title=title, k=loop.module.describe_evaluation().get("k"))
    if chosen.output and loop.is_global_zero:
        folder = RunFolder(Path(chosen.output).parent)
        if Path(chosen.output).name == RESULTS:  # of a column that only evaluates: the report reads both files
            loop.write_prompt_counts(folder)
        # written whole, because `ippo compare` takes this file as the sign of a finished run
        folder.write(Path(chosen.output).name, loop.describe_evaluation(metrics))
    end_process_group()


def evaluate_runs(_: ArgumentParser, settings: Namespace, words: Sequence[str]) -> None:
    """Run `ippo evaluate RUN`."""
    from ippo_lightning.cli.evaluate_runs import run_command

    run_command(settings[EVALUATE_RUNS].clone(), words)


def compare(_: ArgumentParser, settings: Namespace, words: Sequence[str]) -> None:
    """Run `ippo compare`."""
    given = settings.compare.clone()
    given.pop("config", None)
    chosen = given.as_dict()
    if chosen["methods"] is not None:  # null is refused with the other settings
        chosen["methods"] = {name: MethodSettings(**vars_of(method)) for name, method in chosen["methods"].items()}
    checked = CompareSettings(**chosen)

    from ippo_lightning.cli.compare import run_comparison

    run_comparison(checked, command=public_command(["ippo", *words]))


def export(_: ArgumentParser, settings: Namespace, words: Sequence[str]) -> None:
    """Run `ippo export`."""
    given = settings.export.clone()
    run_dir = Path(given.pop("run"))
    for name in (CODE, REMOTE_CODE):
        given.pop(name)
    chosen = ExportSettings(**given.as_dict())

    from ippo_lightning.cli.export import export_folder, export_run

    parser, experiment = experiment_of(run_dir, *_PLAIN_FABRIC, given=words)
    # before the model is built
    export_folder(run_dir, chosen)
    folder, checkpoint = export_run(run_dir, _module_of(parser, experiment), settings=chosen)
    print(visible_text(f"Model: {folder}, of {checkpoint}"))


def replay(_: ArgumentParser, settings: Namespace, words: Sequence[str]) -> None:
    """Run `ippo replay`."""
    given = settings.replay.clone()
    run_dir = Path(given.pop("run"))
    for name in (CODE, REMOTE_CODE):
        given.pop(name)
    chosen = ReplaySettings(**given.as_dict())

    from ippo_lightning.cli.replay import chosen_step, replay_run

    # before the experiment, which takes seconds to build
    path = chosen_step(run_dir, chosen.step)
    parser, experiment = experiment_of(run_dir, *_PLAIN_FABRIC, given=words)
    print(replay_run(run_dir, path, _module_of(parser, experiment), settings=chosen))


def analyse(_: ArgumentParser, settings: Namespace, words: Sequence[str]) -> None:
    """Run `ippo diagnose` or `ippo trace`."""
    from ippo_lightning.cli.analyses import run_analysis

    run_analysis(words[0], settings[words[0]].clone(), words)


def intervene(_: ArgumentParser, settings: Namespace, words: Sequence[str]) -> None:
    """Run `ippo intervene`."""
    from ippo_lightning.cli.intervene import run_intervention

    run_intervention(settings.intervene.clone(), words)


def _module_of(parser: ArgumentParser, experiment: Namespace) -> Any:
    """Build the module of a run alone: its GPUs, loggers, callbacks and data may not exist here."""
    experiment[experiment.subcommand].data = experiment[experiment.subcommand].callbacks = None
    return build_objects(parser, experiment).model


_PLAIN_FABRIC = ("--fabric.accelerator=cpu", "--fabric.devices=1", "--fabric.num_nodes=1", "--fabric.strategy=auto",
                 "--fabric.precision=null", "--fabric.plugins=null", "--fabric.loggers=null")  # fmt: skip


def experiment_of(run_dir: Path, *words: str, given: Sequence[str]) -> tuple[ArgumentParser, Namespace]:
    """Return a parser and the parsed configuration of a run.

    Args:
        run_dir: folder of a run of `ippo fit`.
        words: options that override the configuration.
        given: the words as the user typed them, which may say that the folder's code is trusted.

    Raises:
        UserError: the folder has no configuration, or names code that is not trusted.
    """
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"run: {run_dir} has no {CONFIG}; expected the folder of a run of `ippo fit`")

    from ippo_lightning.cli.axis_options import options_of
    from ippo_lightning.cli.command_line import read_command_line
    from ippo_lightning.cli.override_words import require_read
    from ippo_lightning.cli.parsers import build_parser

    line = read_command_line(["evaluate", "--config", str(run_dir / CONFIG), *words], run_folder=run_dir)
    trust = without_trust(given)[1]
    is_trusted = check_trust(line.run_configs, trust=trust, own_layers=line.own_layers, given=given)
    if is_trusted:
        search_working_folder()
    check_command(line)
    parser = build_parser("evaluate", reads_files=is_trusted)
    settings = parser.parse_args(line.words)
    require_read(settings.get("evaluate", settings), list(options_of(words)))
    return parser, settings


def report(_: ArgumentParser, settings: Namespace, __: Sequence[str]) -> None:
    """Run `ippo report`."""
    from rich.console import Console

    from ippo_lightning.report import report_of

    chosen = settings.report
    for run in chosen.runs:
        if not Path(run).exists() and near_folder(run):
            raise UserError(f"folder: '{run}' does not exist{near_folder(run)}")
    path = report_of(
        [Path(run) for run in chosen.runs],
        output=Path(chosen.output) if chosen.output else None,
        baseline=chosen.baseline,
        featured=chosen.featured,
    )
    # one line without markup: a path that is broken or loses its brackets cannot be opened
    Console().print(visible_text(f"Report: {path}"), soft_wrap=True, markup=False, highlight=False)


def init(_: ArgumentParser, settings: Namespace, __: Sequence[str]) -> None:
    """Run `ippo init`."""
    from ippo_lightning.cli.start_check import check_axes
    from ippo_lightning.cli.starting import found_files, next_steps, start_project

    chosen = settings.init
    if not chosen.folder:
        raise UserError("init: no folder given; expected ippo init FOLDER, for example ippo init my_project")
    folder = Path(chosen.folder)
    options = {axis: chosen.get(axis) for axis in FOLDERS}
    files = found_files(options)
    if files:
        check_axes(options, files=files)
    print(visible_text(next_steps(folder, start_project(folder, files)), multiline=True))


def experiments(_: ArgumentParser, settings: Namespace, __: Sequence[str]) -> None:
    """Run `ippo experiments`."""
    from ippo_lightning.cli.listing import list_experiments, print_experiments

    print_experiments(list_experiments(settings.experiments.get("axis")))


COMMANDS: dict[str, Callable[[ArgumentParser, Namespace, Sequence[str]], None]] = {
    "init": init,
    "experiments": experiments,
    "fit": fit,
    "evaluate": evaluate,
    EVALUATE_RUNS: evaluate_runs,
    "compare": compare,
    "export": export,
    "replay": replay,
    "diagnose": analyse,
    "trace": analyse,
    "intervene": intervene,
    "report": report,
}
"""Each takes the parser, the parsed settings, and the words as the user typed them."""


def refuse_to_replace(output: Path) -> None:
    """Refuse to write numbers over a file of a run or beside a model.

    Raises:
        UserError: a run wrote the file, or see `refuse_model_folder`.
    """
    refuse_model_folder("output", output.parent)
    if output.exists() and output.name in READABLE and RunFolder(output.parent).has_run_beside(output.name):
        raise UserError(f"output: {output} is a file of the run in {output.parent}; name another file")


def print_metrics(metrics: dict[str, float], *, title: str, k: object = None) -> None:
    """Print a small table of metrics; `k` is that of pass@k. A metric that is 0 / 0 is left out, as in a report."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    # as Text, because rich reads brackets in a plain string, of a path for example, as a style; in a line of its own,
    # because a table breaks a long title at its own width, also inside a word
    console.print(Text(visible_text(title)), soft_wrap=True)
    table = Table("metric", "value")
    for name, value in metrics.items():
        if math.isnan(value):
            continue
        table.add_row(Text(visible_text(shown_metric(name, k=k))), f"{value:.3f}")
    console.print(table)
