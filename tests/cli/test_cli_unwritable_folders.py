"""A folder that nothing can be written into: each command tells so in one line, before it builds anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from traced_runs import lake_run

from ippo_lightning.cli import analyses, commands, evaluate_runs
from ippo_lightning.cli.main import main
from ippo_lightning.storage import output_folders

COMMANDS = {
    "evaluate": "evaluations",
    "report": "report",
    "export": "export",
    "diagnose": "diagnosis/iteration_0000002",
    "trace": "trace/chosen",
    "intervene": "intervention",
}
"""Each with the part of the run's folder that it writes into."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lake_run(tmp_path_factory.mktemp("unwritable"))


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that is read-only; nothing may be built."""

    def refuse(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    def build(*_: Any, **__: Any) -> None:
        raise AssertionError("the folder is checked before anything is built")

    monkeypatch.setattr(output_folders, "TemporaryFile", refuse)
    for module in (analyses, commands, evaluate_runs):
        monkeypatch.setattr(module, "build_loop", build)
    monkeypatch.setattr(commands, "build_objects", build)


def error_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    return printed


@pytest.mark.usefixtures("unwritable")
@pytest.mark.parametrize(("command", "part"), list(COMMANDS.items()))
def test_a_run_in_a_folder_that_is_read_only_is_one_line_before_any_work(
    command: str, part: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_line([command, str(run)], capsys) == (
        f"ippo: error: output: {run / part} cannot be written into (Read-only file system); name another folder with "
        "--output"
    )


@pytest.mark.usefixtures("unwritable")
def test_an_evaluation_of_a_configuration_checks_the_folder_of_its_numbers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "numbers.json")]
    assert f"output: {tmp_path} cannot be written into (Read-only file system)" in error_line(words, capsys)


@pytest.mark.usefixtures("unwritable")
def test_a_comparison_checks_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--config", "experiments/grids/demo.yaml", "--run_dir", str(tmp_path / "all")]
    assert f"run_dir: {tmp_path / 'all'} cannot be written into (Read-only file system)" in error_line(words, capsys)
