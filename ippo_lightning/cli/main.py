"""`ippo fit | evaluate | compare | export | report`: from YAML to objects to a run; from runs to reports and models.

Heavy libraries are imported only when a command needs them: help, the version and most mistakes answer before that.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ippo_lightning.cli.axis_options import options_of
from ippo_lightning.cli.closed_output import reader_is_gone, silence
from ippo_lightning.cli.command_line import CommandLine, read_command_line
from ippo_lightning.cli.error_messages import one_line, suggestion
from ippo_lightning.cli.help_pages import light_answer
from ippo_lightning.cli.override_words import is_override, require_read, with_texts
from ippo_lightning.cli.plain_output import show_plain_text
from ippo_lightning.cli.quick_check import check_command
from ippo_lightning.cli.run_words import of_runs
from ippo_lightning.cli.trust import check_trust, outside_names, search_working_folder
from ippo_lightning.cli.usage_hints import missing_argument, stray_word
from ippo_lightning.errors import UserError
from ippo_lightning.run.signals import Interrupted
from ippo_lightning.storage.locks import hold_early
from ippo_lightning.storage.run_folder import FOLDER_VARIABLE
from ippo_lightning.storage.terminal_lines import broken_between_words, terminal_width
from ippo_lightning.storage.untrusted_text import visible_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXIT_USER_ERROR, EXIT_FAILURE, EXIT_SIGNAL, EXIT_INTERRUPT, EXIT_BROKEN_PIPE = 2, 1, 128, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    Args:
        arguments: the words after `ippo`; None for those of the process.

    Returns:
        0 after success; 2 after an error of the user, which is one line; 1 if training broke down; 130 after Ctrl-C,
        128 plus the number of the signal after another one; 141, without a message, if the program that reads the
        output has ended.
    """
    try:
        try:
            return _run_and_report(arguments)
        finally:
            sys.stdout.flush()  # here, where a broken pipe is caught, and not at the end of the process
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        silence()
        return EXIT_BROKEN_PIPE


def _run_and_report(arguments: Sequence[str] | None) -> int:
    """Run the command line; turn errors into one line and an exit code. Arguments and return value as in `main`."""
    quieten()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(words)
    except UserError as error:
        if os.environ.get("IPPO_TRACEBACK"):  # a reward or grader that raises is easier to mend with its own lines
            print(visible_text(traceback.format_exc(), multiline=True), file=sys.stderr)
        _say(f"ippo: error: {one_line(str(error))}")
        return EXIT_USER_ERROR
    # not a mistake in the words: training or the disk failed, so the code is another one
    except (FloatingPointError, OSError) as error:
        return _failure(error)
    except (RuntimeError, MemoryError) as error:
        return _lost_rank_or_memory(error)
    # before KeyboardInterrupt, which is its base class
    except Interrupted as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the other ranks would print the same line
            _say(f"ippo: interrupted: {error}")
        return EXIT_SIGNAL + error.number
    except KeyboardInterrupt as error:
        _say(f"ippo: interrupted: {str(error) or 'at once; the last checkpoint is kept'}")
        return EXIT_INTERRUPT


def _say(line: str) -> None:
    """Print a line to standard error; text of any origin in it must not reach the terminal as control characters."""
    print(broken_between_words(visible_text(line), terminal_width(sys.stderr)), file=sys.stderr)


def _failure(error: FloatingPointError | OSError) -> int:
    """Report that training or the disk failed; raise the error if the reader of the output has ended."""
    if isinstance(error, BrokenPipeError) and reader_is_gone():
        raise error
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:  # no disk is at fault: the name was given by the user
        name = str(getattr(error, "filename", ""))
        _say(f"ippo: error: {name[:60]}...: this name is too long for a file; expected the path of a file or folder")
        return EXIT_USER_ERROR
    if os.environ.get("IPPO_TRACEBACK"):
        raise error
    # longer than other lines: episodes with their prompts come before the file that keeps the step
    _say(f"ippo: stopped: {one_line(str(error), limit=1200)}")
    return EXIT_FAILURE


def _lost_rank_or_memory(error: RuntimeError | MemoryError) -> int:
    """Report that another rank ended, or that memory ran out where no pass can be smaller; raise any other error."""
    from ippo_lightning.distributed.collectives import is_lost_rank_error, rank
    from ippo_lightning.records.out_of_memory import is_out_of_memory

    if not os.environ.get("IPPO_TRACEBACK") and is_out_of_memory(error):
        _say(
            f"ippo: stopped: the device's memory does not suffice ({one_line(str(error), limit=120)}); use a smaller "
            "model, lora, quantization, or a device with more memory; the last checkpoint is kept"
        )
        return EXIT_FAILURE
    if not os.environ.get("IPPO_TRACEBACK") and type(error).__name__ == "ChecksumError":  # its module is heavy
        _say(f"ippo: stopped: InfluenceFilter: {one_line(str(error), limit=800)}; the last checkpoint is kept")
        return EXIT_FAILURE
    if os.environ.get("IPPO_TRACEBACK") or not is_lost_rank_error(error):
        raise error
    lost = f"rank {rank()} lost another rank ({one_line(str(error), limit=120)})"
    _say(f"ippo: stopped: {lost}; the output of that rank has the reason, the last checkpoint is kept")
    return EXIT_FAILURE


def run(words: Sequence[str]) -> int:
    """Parse and run one command; errors are raised. Arguments and return value as in `main`.

    Raises:
        UserError: also where code of the user would end the process as if the command had succeeded.
    """
    answer = light_answer(words)
    if answer is not None:
        print(answer)
        return 0
    _hold_folder()
    try:
        line = read_command_line(of_runs(words) or words)
        is_trusted = check_trust(line.run_configs, trust=line.trust, own_layers=line.own_layers, given=words)
        # a report needs no code of the folder in which the user happens to work, and `export` decides for itself
        if line.words[0] in _OF_OWN_YAML and (is_trusted or any(outside_names(line.own_layers))):
            search_working_folder()
        check_command(line)
        return parse_and_run(line, given=words, is_trusted=is_trusted)
    except (SystemExit, GeneratorExit) as error:
        # the parser itself leaves by SystemExit after it has printed help, a configuration or a completion
        if isinstance(error, SystemExit) and (error.code or _raised_in(error)[0] in _PARSERS):
            raise
        raise UserError(_left(error)) from error


def _hold_folder() -> None:
    """Lock the folder of a run of a comparison, if this process is one.

    Raises:
        UserError: another run is under way in the folder.
    """
    # Before all that takes long: a run whose comparison was killed may be loading its model, and a second one of the
    # same folder would load it, too. Removed, because the run's own processes inherit the variables.
    folder = os.environ.pop(FOLDER_VARIABLE, None)
    if folder is not None and not hold_early(Path(folder)):
        raise UserError(f"run_dir: a run is under way in {folder}; wait for it, stop it, or name another folder")


_OF_OWN_YAML = ("fit", "evaluate", "compare")


def parse_and_run(line: CommandLine, *, given: Sequence[str], is_trusted: bool = True) -> int:
    """Parse a command and run it.

    Args:
        line: the command with its files read.
        given: the words as the user typed them.
        is_trusted: whether a value of a file may name another file; see `check_trust`.

    Raises:
        UserError: the parser refuses a word, or the command an argument.
    """
    from jsonargparse import ArgumentError

    from ippo_lightning.cli import commands
    from ippo_lightning.cli.parsers import build_parser, known_keys

    command = line.words[0] if line.words[0] in commands.COMMANDS else None
    parser: ArgumentParser = build_parser(command, reads_files=is_trusted)
    try:
        settings = parser.parse_args(line.words)
        chosen = settings.get(settings.subcommand)
        require_read(chosen, [one for one in options_of(given[1:]) if not (line.overrides and is_override(one))])
        if line.overrides:
            chosen.overrides = with_texts(chosen.overrides, line.overrides)
        commands.COMMANDS[settings.subcommand](parser, settings, given)
    except ArgumentError as error:
        message = str(error)
        found = missing_argument(message) or f"{one_line(message)}{suggestion(message, known_keys(line.words))}"
        raise UserError(f"{found}{stray_word(message)}") from error
    return 0


_PARSERS = frozenset({"argparse", "jsonargparse", "shtab"})


def _raised_in(error: BaseException) -> tuple[str, str]:
    """Return the package that raised an error, and the place in its file."""
    *_, (frame, number) = traceback.walk_tb(error.__traceback__)
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return package, f"{frame.f_code.co_filename}:{number}"


def _left(error: BaseException) -> str:
    """Return one line on what would end the process as if the command had succeeded, and where it was raised."""
    place = _raised_in(error)[1]
    return f"{type(error).__name__} was raised in {place}, and the command is not done; raise an error there"


def quieten() -> None:
    """Keep notices of other libraries out of the terminal; their errors still come."""
    # setdefault: what the user has set in the environment wins
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each retry would be two lines
    # without a GPU, bitsandbytes reports missing kernels at import
    for name in ("bitsandbytes", "bitsandbytes.cextension", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    show_plain_text()
    # said of a resumed run, whose metrics the logger keeps
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")


if __name__ == "__main__":
    sys.exit(main())
