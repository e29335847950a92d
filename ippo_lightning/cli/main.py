"""`ippo fit | evaluate | compare | export | report`: from YAML to objects to a run; from runs to pages and models."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from ippo_lightning.cli.error_messages import one_line, suggestion
from ippo_lightning.errors import UserError
from ippo_lightning.run.signals import Interrupted
from ippo_lightning.storage.run_folder import CONFIG, RunFolder

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from ippo_lightning.run.fabric_loop import FabricLoop

EXIT_MISTAKE, EXIT_FAILURE, EXIT_SIGNAL, EXIT_INTERRUPT = 2, 1, 128, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    Args:
        arguments: the words after `ippo`; null for those of the process.

    Returns:
        0; 2 after a mistake of the user, said in one line; 1 where training broke down; 130 after Ctrl-C, 128 and the
        signal's number after another one.
    """
    quieten()
    import yaml
    from jsonargparse import ArgumentError

    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(words)
    except ArgumentError as error:
        from ippo_lightning.cli.parsers import known_keys

        message = str(error)
        print(f"ippo: error: {one_line(message)}{suggestion(message, known_keys(words))}", file=sys.stderr)
        return EXIT_MISTAKE
    except (UserError, yaml.YAMLError) as error:
        print(f"ippo: error: {one_line(str(error))}", file=sys.stderr)
        return EXIT_MISTAKE
    except (FloatingPointError, OSError) as error:
        if os.environ.get("IPPO_TRACEBACK"):
            raise
        print(f"ippo: stopped: {one_line(str(error))}", file=sys.stderr)
        return EXIT_FAILURE
    except RuntimeError as error:
        from ippo_lightning.distributed.collectives import is_lost_rank_error, rank

        if os.environ.get("IPPO_TRACEBACK") or not is_lost_rank_error(error):
            raise
        lost = f"rank {rank()} lost another rank ({one_line(str(error), limit=120)})"
        print(f"ippo: stopped: {lost}; that rank's own output says why, the last checkpoint is whole", file=sys.stderr)
        return EXIT_FAILURE
    except Interrupted as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the others would say the same
            print(f"ippo: interrupted: {error}", file=sys.stderr)
        return EXIT_SIGNAL + error.number
    except KeyboardInterrupt as error:
        print(f"ippo: interrupted: {error or 'at once; the last checkpoint is kept'}", file=sys.stderr)
        return EXIT_INTERRUPT


def run(arguments: Sequence[str]) -> int:
    """Parse and carry out one command; mistakes are raised. Arguments and return value as in `main`."""
    from ippo_lightning.cli.parsers import build_parser, with_resume

    parser = build_parser()
    if not arguments:
        parser.print_help()
        return 0
    settings = parser.parse_args(with_resume(arguments))
    commands = {"fit": fit, "evaluate": evaluate, "compare": compare, "export": export, "report": report}
    commands[settings.subcommand](parser, settings)
    return 0


def fit(parser: ArgumentParser, settings: Namespace) -> None:
    """Run `ippo fit`."""
    loop = build_loop(parser, settings)
    results = loop.fit()
    if results and loop.is_global_zero:
        print_metrics(results, title=f"test, {loop.folder.path}")


def evaluate(parser: ArgumentParser, settings: Namespace) -> None:
    """Run `ippo evaluate`."""
    loop = build_loop(parser, settings)
    chosen = settings.evaluate
    loop.set_up_evaluation(Path(chosen.checkpoint) if chosen.checkpoint else None)
    metrics = loop.evaluate(chosen.split)
    if not loop.is_global_zero:
        return
    print_metrics(metrics, title=chosen.split)
    if chosen.output:
        folder = RunFolder(Path(chosen.output).parent)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write(Path(chosen.output).name, loop.describe_evaluation(metrics))


def compare(parser: ArgumentParser, settings: Namespace) -> None:
    """Run `ippo compare`."""
    from ippo_lightning.cli.compare import CompareSettings, MethodSettings, run_comparison

    given = settings.compare.clone()
    config = given.pop("config", None)
    names = [str(path) for path in config or []]
    command = "ippo compare" + "".join(f" --config {name}" for name in names)
    chosen = given.as_dict()
    methods = {name: MethodSettings(**vars_of(method)) for name, method in chosen.pop("methods").items()}
    run_comparison(CompareSettings(**chosen, methods=methods), command=command)


def export(parser: ArgumentParser, settings: Namespace) -> None:
    """Run `ippo export`."""
    from ippo_lightning.cli.export import ExportSettings, export_run

    given = settings.export.clone()
    run_dir = Path(given.pop("run"))
    chosen = ExportSettings(**given.as_dict())
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"run: {run_dir} has no {CONFIG}; expected the folder of a run of `ippo fit`")
    experiment = parser.parse_args(["evaluate", "--config", str(run_dir / CONFIG)])
    objects = build_objects(parser, experiment)
    folder = export_run(run_dir, objects.model, settings=chosen)
    print(f"Model: {folder}")


def report(_: ArgumentParser, settings: Namespace) -> None:
    """Run `ippo report`."""
    from rich.console import Console

    from ippo_lightning.report import report_of

    chosen = settings.report
    page = report_of([Path(run) for run in chosen.runs], output=Path(chosen.output) if chosen.output else None)
    Console().print(f"Report: {page}", soft_wrap=True, markup=False, highlight=False)


def vars_of(settings: Any) -> dict[str, Any]:
    """Return the parsed settings of a dataclass as a dictionary, whichever of the parser's forms they have."""
    return dict(settings) if isinstance(settings, Mapping) else dict(vars(settings))


def build_loop(parser: ArgumentParser, settings: Namespace) -> FabricLoop:
    """Return the loop that a parsed experiment describes, every object built, every random stream seeded."""
    from lightning.fabric import seed_everything
    from transformers.utils.logging import disable_progress_bar

    from ippo_lightning.run.fabric_loop import FabricLoop

    disable_progress_bar()
    chosen = settings[settings.subcommand]
    seed_everything(chosen.seed_everything, verbose=False)
    config = whole_config(parser, settings)
    if chosen.fabric.loggers is None:
        chosen.fabric.loggers = csv_logger(Path(chosen.loop.run_dir))
    objects = build_objects(parser, settings)
    return FabricLoop(
        objects.fabric,
        objects.model,
        objects.data,
        callbacks=objects.callbacks or [],
        settings=objects.loop,
        seed=chosen.seed_everything,
        config=config,
    )


def build_objects(parser: ArgumentParser, settings: Namespace) -> Namespace:
    """Return the experiment with every `class_path` built; what a constructor refuses is the user's mistake."""
    try:
        return parser.instantiate(settings)[settings.subcommand]
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, MisconfigurationException) as error:
        if os.environ.get("IPPO_TRACEBACK"):
            raise
        cause = logger_mistake(settings[settings.subcommand])
        raise UserError(cause or one_line(str(error))) from error


def logger_mistake(chosen: Namespace) -> str | None:
    """Return why one of several loggers cannot be made, which the parser does not tell; None where all can."""
    given = chosen.get("fabric.loggers")
    for entry in given if isinstance(given, list) else []:
        module, _, name = str(entry["class_path"]).rpartition(".")
        arguments = entry.get("init_args") or {}
        try:
            getattr(import_module(module), name)(**vars_of(arguments))
        except Exception as error:  # whatever a logger's own library throws
            return one_line(f"fabric.loggers: {name} cannot be made ({type(error).__name__}: {error})")
    return None


def csv_logger(run_dir: Path) -> dict[str, Any]:
    """Return the configuration of a run's logger, unless it names another: `csv/metrics.csv` in its folder."""
    arguments = {"root_dir": str(run_dir), "name": "csv", "version": "", "flush_logs_every_n_steps": 1}
    return {"class_path": "lightning.fabric.loggers.CSVLogger", "init_args": arguments}


def whole_config(parser: ArgumentParser, settings: Namespace) -> str:
    """Return the whole configuration of a run as YAML, defaults included."""
    import yaml

    whole = yaml.safe_load(parser.dump(settings))[settings.subcommand]
    for name in ("config", "resume"):
        whole.pop(name, None)
    return str(yaml.safe_dump(whole, sort_keys=False))


def print_metrics(metrics: dict[str, float], *, title: str) -> None:
    """Print a small table of metrics."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", title=title, title_justify="left")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


def quieten() -> None:
    """Keep other libraries' notices out of the terminal; their errors still come."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("bitsandbytes", "bitsandbytes.cextension", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
