"""Building what a parsed experiment describes: its objects, its loop, and its whole configuration as text."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ippo_lightning.cli.error_messages import one_line
from ippo_lightning.cli.trust import CODE, REMOTE_CODE
from ippo_lightning.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from ippo_lightning.run.fabric_loop import FabricLoop


def vars_of(settings: Any) -> dict[str, Any]:
    """Return the parsed settings of a dataclass as a dictionary, whichever of the parser's forms they have."""
    return dict(settings) if isinstance(settings, Mapping) else dict(vars(settings))


def build_loop(parser: ArgumentParser, settings: Namespace) -> FabricLoop:
    """Return the loop that a parsed experiment describes, with every object built and every random stream seeded."""
    from lightning.fabric import seed_everything
    from transformers.utils.logging import disable_progress_bar

    from ippo_lightning.run.fabric_loop import FabricLoop

    # the bars of loading weights would stand between the lines of the run, or in its log
    disable_progress_bar()
    chosen = settings[settings.subcommand]
    seed_everything(chosen.seed_everything, verbose=False)  # before objects are built: new weights are random
    # before the default logger is set: it names this folder, and a run that was moved would log to the old one
    config = full_config(parser, settings)
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
    """Return the experiment with every `class_path` built.

    Raises:
        UserError: a constructor refuses its arguments.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from ippo_lightning.cli.early_data import early_data
    from ippo_lightning.cli.factories import check_factories

    chosen = settings[settings.subcommand]
    check_factories(chosen)
    try:
        data = early_data(chosen.data)
        if data is None:
            return parser.instantiate(settings)[settings.subcommand]
        without_data = settings.clone()
        without_data[settings.subcommand].data = None
        objects = parser.instantiate(without_data)[settings.subcommand]
        objects.data = data
        return objects
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, MisconfigurationException) as error:
        if os.environ.get("IPPO_TRACEBACK"):
            raise
        message = one_line(str(error))
        # Fabric's messages name its arguments without their section
        own = f"fabric: {message}" if _is_of_fabric(error) else with_section(message, chosen)
        # a logger first: the parser's report does not name the one of several that failed
        raise UserError(logger_error(chosen) or own) from error


def _is_of_fabric(error: BaseException) -> bool:
    # the type does not tell: Fabric raises ValueError and RuntimeError as other constructors do
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "lightning.fabric.connector" for frame, _ in frames)


def with_section(message: str, chosen: Mapping[str, Any] | Namespace) -> str:
    """Return a message with `model.` or `data.` before its field, if the field is an argument of that section.

    Args:
        message: of settings such as `UpdateSettings`, which know their field as `update.num_epochs` only.
        chosen: the parsed settings of the command.

    Example:
        >>> with_section("update.num_epochs: 0", {"model": {"init_args": {"update": {}}}})
        'model.update.num_epochs: 0'
    """
    head, dot, _ = message.partition(":")[0].partition(".")
    for section in ("model", "data"):
        given = chosen.get(section)
        arguments = given.get("init_args") if given is not None and dot else None
        if arguments is not None and head in arguments:
            return f"{section}.{message}"
    return message


def logger_error(chosen: Namespace) -> str | None:
    """Return why one of several loggers cannot be built, or None if all can; the parser does not tell it."""
    given = chosen.get("fabric.loggers")
    for entry in given if isinstance(given, list) else []:
        module, _, name = str(entry["class_path"]).rpartition(".")
        arguments = entry.get("init_args") or {}
        try:
            getattr(import_module(module), name)(**vars_of(arguments))
        except Exception as error:  # whatever the library of a logger raises
            return one_line(f"fabric.loggers: {name} cannot be made ({type(error).__name__}: {error})")
    return None


def csv_logger(run_dir: Path) -> dict[str, Any]:
    """Return the configuration of the default logger of a run: `csv/metrics.csv` in its folder."""
    # no version, so that a resumed run logs to the same place; flushed at once, so that a killed run keeps its rows
    arguments = {"root_dir": str(run_dir), "name": "csv", "version": "", "flush_logs_every_n_steps": 1}
    return {"class_path": "lightning.fabric.loggers.CSVLogger", "init_args": arguments}


def full_config(parser: ArgumentParser, settings: Namespace) -> str:
    """Return the full configuration of a run as YAML, defaults included."""
    import yaml

    # null is a choice, too: left out, it would be read back as the default, which may be a number
    content = yaml.safe_load(parser.dump(settings, skip_unset=False))[settings.subcommand]
    # the files are merged into this text already, and `ippo evaluate`, which reads it too, has no `resume`
    for name in ("config", "resume", CODE, REMOTE_CODE):
        content.pop(name, None)
    # of this command and not of the run: with it, the same configuration given again would remove the run
    content["loop"]["overwrite"] = False
    return str(yaml.safe_dump(content, sort_keys=False))
