"""What the command line accepts: one parser a command, with LightningCLI's conventions."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import CONFIG

set_parsing_settings(add_print_completion_argument=True)

COMMANDS = ("fit", "evaluate", "compare", "export", "report")
_CALLBACKS = (
    "what acts on every iteration: InfluenceFilter, IntrinsicStopping, CompletionsTable, EpisodeLog of "
    "ippo_lightning.callbacks, or your own; --callbacks.help CLASS_PATH lists the arguments of one"
)


class ShortHelp(DefaultHelpFormatter):
    """The parser's own help without its lists of every subclass that some import has brought along."""

    def _get_help_string(self, action: Action) -> str:
        return re.sub(r", known subclasses: [^)]*", "", super()._get_help_string(action))


def build_parser() -> ArgumentParser:
    """Return the parser of all commands."""
    parser = _parser(prog="ippo", description="Post-train language models with Influence-Guided PPO.")
    commands = parser.add_subcommands(required=True)
    commands.add_subcommand("fit", fit_parser(), help="train: SFT, PPO or I-PPO, as the YAML says")
    commands.add_subcommand("evaluate", evaluate_parser(), help="measure a policy on the validation or test problems")
    commands.add_subcommand("compare", compare_parser(), help="methods x seeds, then a table and a page")
    commands.add_subcommand("export", export_parser(), help="write a run's model for transformers, PEFT and vLLM")
    commands.add_subcommand("report", report_parser(), help="make the page of one run, or of several side by side")
    return parser


def experiment_parser(usage: str | None = None) -> ArgumentParser:
    """Return the parser of one experiment: seed, fabric, loop, model, data, callbacks.

    Args:
        usage: how the command is called, in one line; the parser's own lists every key.
    """
    from lightning import Callback, LightningDataModule
    from lightning.fabric import Fabric

    from ippo_lightning.modules import BaseModule
    from ippo_lightning.run.settings import LoopSettings

    parser = _parser(usage=usage)
    parser.add_argument("--config", action="config", help="a YAML file; given several times, later ones win")
    parser.add_argument("--seed_everything", type=int, default=0, help="seed of every random stream")
    parser.add_class_arguments(Fabric, "fabric", skip={"callbacks"}, instantiate=True)
    parser.add_class_arguments(LoopSettings, "loop")
    parser.add_subclass_arguments(BaseModule, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_argument("--callbacks", type=list[Callback] | None, default=None, help=_CALLBACKS)
    assert parser.groups is not None, "made by the lines above"
    parser.groups["fabric"].title = "Strategy, devices, precision: Fabric's own arguments"
    parser.groups["model"].title = "The module, by class_path and init_args"
    parser.groups["data"].title = "The data module, by class_path and init_args"
    parser.set_defaults({"fabric.accelerator": "cpu", "fabric.devices": 1})
    return parser


def fit_parser() -> ArgumentParser:
    """Return the parser of `ippo fit`."""
    parser = experiment_parser("ippo fit {--config FILE ... | --resume DIR} [--key.of.yaml value ...]")
    parser.add_argument("--resume", type=str | None, default=None, help="go on with the run in this folder")
    return parser


def evaluate_parser() -> ArgumentParser:
    """Return the parser of `ippo evaluate`."""
    parser = experiment_parser("ippo evaluate --config FILE ... [--checkpoint FILE] [--split SPLIT]")
    parser.add_argument("--split", type=str, default="test", choices=["validation", "test"], help="which problems")
    parser.add_argument("--checkpoint", type=str | None, default=None, help="a checkpoint of a run of this YAML")
    parser.add_argument("--output", type=str | None, default=None, help="write the metrics to this JSON file")
    return parser


def compare_parser() -> ArgumentParser:
    """Return the parser of `ippo compare`."""
    from ippo_lightning.cli.compare import CompareSettings

    parser = _parser()
    parser.add_argument("--config", action="config", help="a YAML file; given several times, later ones win")
    parser.add_class_arguments(CompareSettings, as_group=False)
    return parser


def export_parser() -> ArgumentParser:
    """Return the parser of `ippo export`."""
    from ippo_lightning.cli.export import ExportSettings

    parser = _parser()
    parser.add_argument("run", type=str, help="folder of a run of `ippo fit`")
    parser.add_class_arguments(ExportSettings, as_group=False)
    return parser


def report_parser() -> ArgumentParser:
    """Return the parser of `ippo report`."""
    parser = _parser()
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs, or the one of a comparison")
    parser.add_argument(
        "--output", type=str | None, default=None, help="folder of the page; by default report/ in the first run's"
    )
    return parser


def known_keys(words: Sequence[str]) -> list[str]:
    """Return the dotted keys that the command of `words` knows, sections among them."""
    parsers = {
        "fit": fit_parser,
        "evaluate": evaluate_parser,
        "compare": compare_parser,
        "export": export_parser,
        "report": report_parser,
    }
    if not words or words[0] not in parsers:
        return list(COMMANDS)
    return sorted(parsers[words[0]]().get_defaults().keys())


def with_resume(arguments: Sequence[str]) -> list[str]:
    """Return the words with `--resume DIR` spelt out: the configuration of that run, its folder, and to go on there.

    Raises:
        UserError: the folder holds no run.
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    if words[:1] != ["fit"] or "--resume" not in words[:-1]:
        return words
    place = words.index("--resume")
    folder = Path(words[place + 1])
    if not (folder / CONFIG).is_file():
        raise UserError(f"resume: {folder} has no {CONFIG}; expected the folder of a run of `ippo fit`")
    given = ["--config", str(folder / CONFIG), "--loop.run_dir", str(folder)]
    return ["fit", *given, "--loop.resume", "true", "--loop.overwrite", "false", *words[1:place], *words[place + 2 :]]


def _parser(*, prog: str | None = None, description: str | None = None, usage: str | None = None) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog, description=description, usage=usage, allow_abbrev=False, formatter_class=ShortHelp
    )
    parser.exit_on_error = False
    return parser
