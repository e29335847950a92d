"""`ippo experiments` lists what there is, of the package and of the working folder, and `--config` finds each of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ippo_lightning.cli.experiment_paths import find_file, packaged_root
from ippo_lightning.cli.listing import USES
from ippo_lightning.cli.main import EXIT_USER_ERROR, main

FILES = sorted(path for path in packaged_root().glob("*/*.yaml"))


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The lines of `ippo experiments` in an empty folder, divided at their tabs."""
    monkeypatch.chdir(tmp_path)
    assert main(["experiments"]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_every_packaged_experiment_is_listed_with_its_question(listed: list[list[str]]) -> None:
    assert {(folder, name) for folder, name, _ in listed} == {(path.parent.name, path.stem) for path in FILES}
    for folder, name, question in listed:
        text = (packaged_root() / folder / f"{name}.yaml").read_text(encoding="utf-8")
        assert question.endswith((".", "?"))
        comment = " ".join(line.lstrip("# ") for line in text.splitlines()[:8])
        assert comment.startswith(question)


def test_every_folder_of_experiments_has_a_use() -> None:
    assert {path.parent.name for path in FILES} == set(USES)


@pytest.mark.parametrize("axis", ["tasks", "task"])
def test_one_axis_is_listed_by_its_folder_or_its_option(axis: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments", axis]) == 0
    assert {line.split("\t")[0] for line in capsys.readouterr().out.splitlines()} == {"tasks"}


def test_an_unknown_axis_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments", "taks"]) == EXIT_USER_ERROR
    assert "axis: 'taks' is unknown; expected one of base, tasks" in capsys.readouterr().err


def test_experiments_of_the_working_folder_hide_packaged_ones_and_hide_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "experiments" / "tasks"
    own.mkdir(parents=True)
    (own / "gsm8k.yaml").write_text("# Mine?\n{}\n", encoding="utf-8")
    (own / "broken.yaml").write_bytes(b"# \xff\n")
    (own / "hostile.yaml").write_text("# a\x1b[2Jb\tc [bold]\n{}\n", encoding="utf-8")
    assert main(["experiments", "tasks"]) == 0
    output = capsys.readouterr().out
    assert "tasks\tgsm8k\tMine?\n" in output
    assert "tasks\tbroken\t\n" in output
    assert "\x1b" not in output
    assert output.count("gsm8k") == 1


@pytest.mark.parametrize(
    ("comment", "question"),
    [
        ("# Is it so? Yes,\n# it is.\n# ippo fit\n", "Is it so? Yes, it is."),
        ("# Is it so?\n# More of it.\n", "Is it so?"),
        ("# no full stop\n# ippo fit --task own\n", "no full stop"),
        ("# no full stop\n#\n# Another part.\n", "no full stop"),
        ("# no full stop\nloop: {}\n", "no full stop"),
        ("# endless\n" * 9, " ".join(["endless"] * 8)),
        ("", ""),
    ],
)
def test_a_question_ends_where_its_sentence_ends(
    comment: str, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "experiments" / "tasks"
    own.mkdir(parents=True)
    (own / "own.yaml").write_text(comment, encoding="utf-8")
    assert main(["experiments", "tasks"]) == 0
    assert f"tasks\town\t{question}\n" in capsys.readouterr().out


def test_a_terminal_gets_tables_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert main(["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("ippo fit --task NAME" in line for line in lines)
    assert max(len(line.rstrip()) for line in lines) <= 90  # with codes of the terminal


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_natural_spelling_finds_a_packaged_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{path.parent.name}/{path.stem}"
    for spelling in (name, f"{name}.yaml", f"experiments/{name}", f"experiments/{name}.yaml"):
        assert find_file(spelling) == path


def test_files_of_the_working_folder_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base/ppo.yaml", "experiments/base/ppo.yaml"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("{}", encoding="utf-8")
    assert find_file("base/ppo") == Path("base/ppo.yaml")
    assert find_file("experiments/base/ppo") == Path("experiments/base/ppo.yaml")
    assert find_file("../base/ppo") is None
    assert find_file("") is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [("base/pppo", "base/ppo"), ("experiments/metods/ippo.yaml", "methods/ippo"), ("demo", "grids/demo")],
)
def test_a_name_that_is_not_there_gets_the_nearest(name: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", name]) == EXIT_USER_ERROR
    assert f"did you mean {meant}?" in capsys.readouterr().err
