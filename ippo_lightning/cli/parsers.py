"""What the command line accepts: one parser per command, with LightningCLI's conventions."""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from ippo_lightning.cli.experiment_paths import FOLDERS, ROOT
from ippo_lightning.cli.full_configuration import FullParser
from ippo_lightning.cli.help_pages import COMMANDS
from ippo_lightning.cli.listing import USES
from ippo_lightning.cli.run_words import EVALUATE_RUNS
from ippo_lightning.cli.trust import CODE, REMOTE_CODE
from ippo_lightning.cli.yaml_text import bounded_loader

# settings of all parsers; a single parser has no argument for them
set_parsing_settings(
    add_print_completion_argument=True,
    # Python's own library has no part of an experiment, and most of what starts a process or opens a file
    import_path_denylist=sorted(sys.stdlib_module_names),
    # a mapping with a class_path where any value fits is data, not an object to build
    instantiate_subclass_spec_in_any=False,
)
bounded_loader()  # the parser loads texts inside texts by itself

Split = Literal["validation", "test"]
_CALLBACKS = (
    "what acts on every iteration; --callbacks.help lists the classes, --callbacks.help NAME the arguments of one"
)
_FIT = (
    "ippo fit --task NAME [--model NAME] [--method NAME] [--KEY VALUE ...]\n"
    "       ippo fit --config FILE ... [--method NAME] [--KEY VALUE ...]\n"
    "       ippo fit --resume DIR [--KEY VALUE ...]"
)
_EVALUATE_RUNS = "ippo evaluate RUN [RUN ...] [--key value ...] [--fabric.KEY VALUE ...]"
_EVALUATE = (
    "ippo evaluate RUN [RUN ...] [--KEY VALUE ...]  (with --help of its own)\n"
    "       ippo evaluate --task NAME [--model NAME] [--method NAME] [--KEY VALUE]\n"
    "       ippo evaluate --config FILE ... [--checkpoint FILE] [--split SPLIT]"
)


class ShortHelp(DefaultHelpFormatter):
    """The help of the parser without its lists of all subclasses, and with choices in place of words of Python."""

    def _get_help_string(self, action: Action) -> str:
        return re.sub(r", known subclasses: [^)]*", "", super()._get_help_string(action))

    def _expand_help(self, action: Action) -> str:
        # only here the type has its place in the text
        said, found, kinds = super()._expand_help(action).rpartition("(type: ")
        return said + found + plain_types(kinds)


def plain_types(text: str) -> str:
    """Return the types of Python in a text as a user types their values.

    Example:
        >>> plain_types("Optional[Literal['round', 'start']], default: null")
        'round | start | null, default: null'
        >>> plain_types("Union[Literal[64, 32], list[dict[str, int]]]")
        '64 | 32 | list[dict[str, int]]'
    """
    before = ""
    while before != text:  # from the inside out
        before, text = text, re.sub(r"\b(\w+)\[([^][]*)\]", _plain_type, text)
    return text.translate(_WRITTEN)


_WRITTEN = str.maketrans({"\0": "[", "\1": "]", "\2": ","})
"""What stands for the brackets and commas of a type that stays as it is."""


def _plain_type(found: re.Match[str]) -> str:
    name, inner = found[1], found[2]
    if name == "Literal":
        inner = inner.replace("'", "")
    if name in ("Literal", "Union"):
        return inner.replace(", ", " | ")
    kept = inner.replace(",", "\2")
    return f"{inner} | null" if name == "Optional" else f"{name}\0{kept}\1"


def build_parser(command: str | None = None, *, reads_files: bool = True) -> ArgumentParser:
    """Return the parser.

    Args:
        command: the one to be parsed; the arguments of the others, and what they import, are left out. None for all.
        reads_files: whether a value may be the name of a file that contains it.
    """
    parser = _parser(prog="ippo", description="Post-train language models with Influence-Guided PPO.")
    commands = parser.add_subcommands(required=True)
    for name in COMMANDS if command is None else (command,):
        inner = _PARSERS[name]()
        known = inner if reads_files else without_files(inner)
        commands.add_subcommand(name, known, help=COMMANDS.get(name))
    return parser


def without_files(parser: ArgumentParser) -> ArgumentParser:
    """Return an experiment's parser, changed so that no value of an object is read from a file.

    Args:
        parser: changed in place.
    """
    action: Any
    for action in parser._actions:
        # the parser offers this where a single argument is added, and not for the ones of an object
        if getattr(action, "_enable_path", False):
            action._enable_path = False
        if getattr(action, "sub_add_kwargs", None):
            action.sub_add_kwargs["sub_configs"] = False
    return parser


def experiment_parser(usage: str | None = None) -> ArgumentParser:
    """Return the parser of one experiment: seed, fabric, loop, model, data, callbacks.

    Args:
        usage: how the command is called; the usage that the parser makes lists every key.
    """
    from lightning import Callback, LightningDataModule
    from lightning.fabric import Fabric

    from ippo_lightning.modules import BaseModule
    from ippo_lightning.run.settings import LoopSettings

    parser = _parser(usage=usage)
    parser.add_argument("--config", action="config", help="a YAML file; given several times, later ones win")
    parser.add_argument("--seed_everything", type=int, default=0, help="seed of every random stream")
    # the loop calls callbacks itself, at many more places than Fabric does
    parser.add_class_arguments(Fabric, "fabric", skip={"callbacks"}, instantiate=True)
    parser.add_class_arguments(LoopSettings, "loop")
    parser.add_subclass_arguments(BaseModule, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_argument("--callbacks", type=list[Callback] | None, default=None, help=_CALLBACKS)
    assert parser.groups is not None, "made by the lines above"
    parser.groups["fabric"].title = "Strategy, devices, precision: Fabric's own arguments"
    parser.groups["model"].title = "The module, by class_path and init_args"
    parser.groups["data"].title = "The data module, by class_path and init_args"
    # Fabric's own default takes every GPU that it finds
    parser.set_defaults({"fabric.accelerator": "cpu", "fabric.devices": 1})
    return parser


def fit_parser() -> ArgumentParser:
    """Return the parser of `ippo fit`."""
    parser = experiment_parser(_FIT)
    # for the help: `with_resume` spells the option out before the parser reads the words
    parser.add_argument("--resume", type=str | None, default=None, help="resume the run in this folder")
    _add_trust(parser)
    return parser


def evaluate_parser() -> ArgumentParser:
    """Return the parser of `ippo evaluate`."""
    parser = experiment_parser(_EVALUATE)
    parser.add_argument("--split", type=Split, default="test", help="which problems")
    parser.add_argument("--checkpoint", type=str | None, default=None, help="a checkpoint of a run of this YAML")
    parser.add_argument("--output", type=str | None, default=None, help="write the metrics to this JSON file")
    _add_trust(parser)
    return parser


def evaluate_runs_parser() -> ArgumentParser:
    """Return the parser of `ippo evaluate RUN`."""
    from ippo_lightning.cli.settings import EvaluateSettings

    parser = _parser(usage=_EVALUATE_RUNS)
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs of `ippo fit`; differences are to the first")
    parser.add_class_arguments(EvaluateSettings, as_group=False)
    _add_trust(parser)
    return parser


def compare_parser() -> ArgumentParser:
    """Return the parser of `ippo compare`."""
    from ippo_lightning.cli.settings import CompareSettings

    parser = _parser(usage="ippo compare --config FILE ... [--key value ...]")
    parser.add_argument("--config", action="config", help="a YAML file; given several times, later ones win")
    parser.add_class_arguments(CompareSettings, as_group=False)
    return parser


def export_parser() -> ArgumentParser:
    """Return the parser of `ippo export`."""
    from ippo_lightning.cli.settings import ExportSettings

    parser = _parser(usage="ippo export RUN [--key value ...]")
    parser.add_argument("run", type=str, help="folder of a run of `ippo fit`")
    parser.add_class_arguments(ExportSettings, as_group=False)
    _add_trust(parser)
    return parser


def replay_parser() -> ArgumentParser:
    """Return the parser of `ippo replay`."""
    from ippo_lightning.cli.settings import ReplaySettings

    parser = _parser(usage="ippo replay RUN [--key value ...]")
    parser.add_argument("run", type=str, help="folder of a run of `ippo fit` that ended with NaN or infinity")
    parser.add_class_arguments(ReplaySettings, as_group=False)
    _add_trust(parser)
    return parser


def _analysis_parser(name: str) -> ArgumentParser:
    """Return the parser of `ippo diagnose`, `ippo trace` or `ippo intervene`."""
    from ippo_lightning.cli.analysis_settings import SETTINGS

    takes_several = name == "intervene"
    parser = _parser(usage=f"ippo {name} RUN {'[RUN ...] ' if takes_several else ''}[--key value ...]")
    if takes_several:
        parser.add_argument(
            "runs", type=str, nargs="+", help="folders of runs of `ippo fit` that kept their buffers: seeds of one kind"
        )
    else:
        parser.add_argument("run", type=str, help="folder of a run of `ippo fit` that kept its buffers")
    parser.add_class_arguments(SETTINGS[name], as_group=False)
    _add_trust(parser)
    return parser


def init_parser() -> ArgumentParser:
    """Return the parser of `ippo init`."""
    parser = _parser(usage="ippo init FOLDER [--task NAME] [--model NAME] [--method NAME]")
    # not required by the parser, whose message would name a key and no word of the command
    parser.add_argument("folder", type=str, nargs="?", help="folder of the new project; no file in it is replaced")
    for axis in FOLDERS:
        parser.add_argument(
            f"--{axis}", type=str | None, default=None, help=f"write out {ROOT}/{FOLDERS[axis]}/NAME.yaml"
        )
    return parser


def experiments_parser() -> ArgumentParser:
    """Return the parser of `ippo experiments`."""
    parser = _parser(usage="ippo experiments [AXIS]")
    parser.add_argument("axis", type=str, nargs="?", help=f"one of {', '.join(USES)}; all by default")
    return parser


def report_parser() -> ArgumentParser:
    """Return the parser of `ippo report`."""
    parser = _parser(usage="ippo report RUN ... [--output FOLDER] [--baseline NAME] [--featured NAME]")
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs, or the one of a comparison")
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="folder of the report; by default report/ in that of the first run",
    )
    for role, use in (("baseline", "the others are compared with"), ("featured", "the headline is about")):
        parser.add_argument(f"--{role}", type=str | None, default=None, help=f"name of the method that {use}")
    return parser


_PARSERS: dict[str, Callable[[], ArgumentParser]] = {
    "init": init_parser,
    "experiments": experiments_parser,
    "fit": fit_parser,
    "evaluate": evaluate_parser,
    EVALUATE_RUNS: evaluate_runs_parser,
    "compare": compare_parser,
    "export": export_parser,
    "replay": replay_parser,
    "diagnose": partial(_analysis_parser, "diagnose"),
    "trace": partial(_analysis_parser, "trace"),
    "intervene": partial(_analysis_parser, "intervene"),
    "report": report_parser,
}


def known_keys(words: Sequence[str]) -> list[str]:
    """Return the dotted keys that the command of `words` accepts, sections among them."""
    return sorted(_PARSERS[words[0]]().get_defaults().keys()) if words and words[0] in _PARSERS else list(COMMANDS)


def _add_trust(parser: ArgumentParser) -> None:
    # for the help: `without_trust` takes both out of the words before the parser reads them
    parser.add_argument(f"--{CODE}", type=bool, default=False, help="run code a run names")
    # not in the help, which is long enough: the message that asks for it contains the whole command
    parser.add_argument(f"--{REMOTE_CODE}", type=bool, default=False, help=SUPPRESS)


def _parser(*, prog: str | None = None, description: str | None = None, usage: str | None = None) -> ArgumentParser:
    # no abbreviations: the check before the imports and `--resume` compare full names
    parser = FullParser(prog=prog, description=description, usage=usage, allow_abbrev=False, formatter_class=ShortHelp)
    # errors are raised and not printed with the usage: `main` makes one line of each
    parser.exit_on_error = False
    return parser
