"""Every YAML under experiments/ is what the command in its header says, and the command line understands it."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from ippo_lightning.cli.parsers import build_parser, experiment_parser

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.yaml"))
CONTINUED = "#   "


def header_commands(file: str) -> list[list[str]]:
    """The words of each `# ippo ...` of a file's first comment, lines set further in belonging to the one above.

    A remark may stand behind a command, two spaces off.
    """
    commands: list[str] = []
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# ippo "):
            commands.append(line[2:].partition("  ")[0])
        elif line.startswith(CONTINUED) and commands:
            commands[-1] += line[1:]
    return [shlex.split(command) for command in commands]


def config_files(words: list[str]) -> list[str]:
    return [value for option, value in itertools.pairwise(words) if option == "--config"]


COMMANDS = [(file, words) for file in FILES for words in header_commands(file)]
FIT_COMMANDS = [(file, words) for file, words in COMMANDS if words[1] == "fit"]
OVERLAYS = [(file, words) for file, words in FIT_COMMANDS if len(config_files(words)) > 1]


def ids(commands: list[tuple[str, list[str]]]) -> list[str]:
    return [f"{file.removeprefix('experiments/')}-{len(words)}-words" for file, words in commands]


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return experiment_parser()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands name their files from the root of the checkout."""
    monkeypatch.chdir(ROOT)


def parsed(parser: ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    settings = parser.parse_args(arguments)
    return {name: value for name, value in settings.as_dict().items() if name != "config"}


@pytest.mark.parametrize("folder", ["arithmetic", "gsm8k"])
def test_each_task_has_supervised_plain_and_influence_guided_training(folder: str) -> None:
    assert {f"experiments/{folder}/{name}.yaml" for name in ("sft", "ppo", "ippo")} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_the_header_says_how_to_run_the_file(file: str) -> None:
    commands = header_commands(file)
    assert commands
    for words in commands:
        assert words[:2] in (["ippo", "fit"], ["ippo", "evaluate"], ["ippo", "compare"])
        assert config_files(words)[-1] == file
        assert not [name for name in config_files(words) if not Path(name).is_file()]


@pytest.mark.parametrize(("file", "words"), FIT_COMMANDS, ids=ids(FIT_COMMANDS))
def test_the_command_line_understands_the_file(parser: ArgumentParser, file: str, words: list[str]) -> None:
    settings = parsed(parser, words[2:])
    assert settings["loop"]["run_dir"] == f"runs/{Path(file).parent.name}/{Path(file).stem}"


@pytest.mark.parametrize(
    ("file", "words"), [pair for pair in COMMANDS if pair[1][1] == "compare"], ids=lambda value: str(value)[:40]
)
def test_the_command_line_understands_the_comparison(file: str, words: list[str]) -> None:
    settings = build_parser().parse_args(words[1:]).compare
    files = {name for method in settings.methods.values() for name in method.config}
    assert files <= set(FILES)


@pytest.mark.parametrize(("file", "words"), OVERLAYS, ids=ids(OVERLAYS))
def test_what_is_laid_over_plain_ppo_changes_callbacks_and_nothing_else(
    parser: ArgumentParser, file: str, words: list[str]
) -> None:
    base, changed = parsed(parser, words[2:4]), parsed(parser, words[2:])
    assert base["callbacks"] != changed["callbacks"]
    for settings in (base, changed):
        del settings["callbacks"], settings["loop"]["run_dir"]
    assert base == changed


@pytest.mark.parametrize(("file", "words"), FIT_COMMANDS, ids=ids(FIT_COMMANDS))
def test_no_file_holds_what_only_one_machine_has(file: str, words: list[str]) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not [part for part in ("/work", "/home", "/tmp", "../") if part in text]


@pytest.mark.parametrize(
    "override", [["--model.init_args.nope", "1"], ["--data.init_args.batch_size", "many"], ["--loop.nope", "1"]]
)
def test_the_command_line_refuses_a_mistake(parser: ArgumentParser, override: list[str]) -> None:
    with pytest.raises(ArgumentError):
        parser.parse_args(["--config", "experiments/gsm8k/ppo.yaml", *override])
