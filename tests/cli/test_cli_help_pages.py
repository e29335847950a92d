"""Help: short, without Python's inner names, and with the classes that there are."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

import ippo_lightning
from ippo_lightning import callbacks, modules, policies
from ippo_lightning.cli import short_names
from ippo_lightning.cli.main import main
from ippo_lightning.cli.short_names import expand_names, full_path
from ippo_lightning.errors import UserError

COMMANDS = (
    "init",
    "experiments",
    "fit",
    "evaluate",
    "compare",
    "export",
    "replay",
    "diagnose",
    "trace",
    "intervene",
    "report",
)


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with contextlib.suppress(SystemExit):
        assert main(words) == 0
    return capsys.readouterr().out


def test_the_program_is_called_ippo_however_it_is_started(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ippo_lightning.cli"]
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [*words, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path, env={"PYTHONPATH": root}
    )
    assert done.stdout.startswith(f"usage: ippo {{{','.join(COMMANDS)}}}")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(["--version"], capsys) == f"ippo {ippo_lightning.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_inner_names(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed([command, "--help"], capsys)
    assert text.startswith(f"usage: ippo {command}")
    assert not [word for word in ("<lambda>", "known subclasses", "__main__", "<class") if word in text]
    assert not [word for word in ("Optional[", "Literal[", "Union[") if word in text]


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("model", {"PPOModule", "SFTModule"}),
        ("data", {"TextDataModule"}),
        ("callbacks", {"InfluenceFilter", "IntrinsicStopping", "CompletionsTable", "EpisodeLog"}),
    ],
)
def test_help_of_a_section_lists_its_classes(section: str, names: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["fit", f"--{section}.help"], capsys)
    assert names <= {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    assert "ScoringSettings" not in text


@pytest.mark.parametrize("name", ["InfluenceFilter", "ippo_lightning.callbacks.InfluenceFilter"])
@pytest.mark.parametrize("form", ["{}={}", "{} {}"])
def test_help_of_a_class_lists_its_arguments(name: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["fit", *form.format("--callbacks.help", name).split()], capsys)
    arguments = {line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "}
    assert arguments >= {"rule", "scoring"}
    assert "default: " in text


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--data.help TextDataModule", "('sft' | 'rl'; default: 'rl')"),
        ("--model.help PPOModule", "('k1' | 'k2' | 'k3'; default: 'k1')"),
        ("--model.help PPOModule", "(Reward | None; default: None)"),
        ("--callbacks.help InfluenceFilter", "default: "),
    ],
)
def test_help_of_a_class_lists_the_choices_of_an_argument(
    words: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown in " ".join(printed(["fit", *words.split()], capsys).split())


def test_help_of_a_class_of_lightning_is_read_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert "  interval " in printed(["fit", "--callbacks.help", "lightning.pytorch.callbacks.Timer"], capsys)


def test_help_of_a_class_of_the_user_comes_from_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "from lightning import Callback\n\nclass Mine(Callback):\n    def __init__(self, often: int = 3): ...\n"
    (tmp_path / "callbacks_for_tests.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "often" in printed(["fit", "--callbacks.help", "callbacks_for_tests.Mine"], capsys)


def test_every_short_name_is_what_the_room_exports() -> None:
    for room in (callbacks, modules, policies):
        for name in room.__all__:
            path = full_path(name)
            if "." in path:
                assert getattr(sys.modules[path.rpartition(".")[0]], name) is getattr(room, name)


def test_an_ambiguous_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_names, "short_names", lambda: {"Twice": ("a.Twice", "b.Twice")})
    with pytest.raises(UserError, match=r"Twice is ambiguous; expected one of a.Twice, b.Twice"):
        full_path("Twice")


def test_a_text_that_is_the_name_of_a_class_stays_a_text() -> None:
    value = {"class_path": "mine.Module", "init_args": {"title": "Grade", "words": ["Step"]}}
    assert expand_names(value) == value
