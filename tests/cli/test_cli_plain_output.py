"""Text of any origin reaches the terminal as plain text: no sequence of it clears, colours or reorders anything."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from experiment_files import change, write

from ippo_lightning.cli.commands import print_metrics
from ippo_lightning.cli.main import main
from ippo_lightning.cli.plain_output import show_plain_text
from ippo_lightning.run.progress import ProgressBar

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[bold]x[/nope]"
PROGRAM = """
import sys, logging, warnings
from ippo_lightning.cli.plain_output import show_plain_text
show_plain_text()
text = sys.argv[1]
logging.getLogger("a").warning("%s", text)
handler = logging.StreamHandler()
logging.getLogger("b").addHandler(handler)
logging.getLogger("b").error(text)
warnings.warn(text)
print("größer als … 漢")
raise RuntimeError(text)
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    kept = warnings.formatwarning, logging.getLogRecordFactory(), sys.excepthook
    yield
    warnings.formatwarning, sys.excepthook = kept[0], kept[2]
    logging.setLogRecordFactory(kept[1])


def is_plain(text: str) -> bool:
    return all(sign.isprintable() or sign in "\n\t" for sign in text)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_the_log_warnings_and_errors_are_plain_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    hostile = "\x1b[2J\x1b]0;owned\x07[bold]x[/nope]"
    command = [sys.executable, "-c", PROGRAM, hostile]
    done = subprocess.run(command, capture_output=True, timeout=60, cwd=tmp_path, env=environment, check=False)
    printed, errors = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 1
    assert is_plain(printed)
    assert is_plain(errors)
    assert "größer" in printed or "gr\\xf6\\xdfer" in printed
    assert errors.count("[2J") >= 4, "the log twice, the warning, the error"
    assert errors.rstrip().splitlines()[-1].startswith("RuntimeError:")


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics({HOSTILE: 1.0}, title=f"test, runs/{HOSTILE}")
    printed = capsys.readouterr().out
    assert is_plain(printed)
    assert "[bold]x[/nope]" in printed.replace("\n", "")


def test_a_metric_that_is_0_by_0_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics({"exact_match": 0.0, "unfaithful_fraction": float("nan")}, title="test")
    shown = capsys.readouterr().out
    assert "exact_match" in shown
    assert "unfaithful" not in shown
    assert "nan" not in shown


def test_the_title_of_a_table_is_whole_however_long_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    title = "test, runs/a_folder_with_a_long_name/and_another_one/and_a_third_one_that_ends_beyond_column_80/run"
    print_metrics({"exact_match": 0.5}, title=title)
    assert title in capsys.readouterr().out.splitlines()


def test_the_progress_bar_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(enabled=True, total=2, title=HOSTILE) as bar:
        bar.say(f"resumed {HOSTILE}")
        bar.update(completed=1, numbers={})
    printed = capsys.readouterr()
    assert is_plain(printed.out + printed.err)
    assert "[bold]x[/nope]" in printed.err


def test_a_run_in_a_folder_with_markup_is_complete(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "[bold]\x1b[2J[" / "[red]run[" / "x"
    change(experiment, "loop.run_dir", str(run))
    change(experiment, "loop.max_iterations", 1)
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 0
    assert main(["export", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    printed = capsys.readouterr()
    assert is_plain(printed.out + printed.err)
    assert "[red]run[" in printed.out


@pytest.mark.parametrize("content", ["", "{", '{"exact_match": 0.', "[" * 100_000, "\ud800"])
def test_results_that_are_cut_are_one_line_on_export(
    content: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ippo_lightning.cli.export import export_run
    from ippo_lightning.cli.settings import ExportSettings
    from ippo_lightning.errors import UserError

    (tmp_path / "results.json").write_bytes(content.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(UserError, match=r"results\.json") as error:
        export_run(tmp_path, None, settings=ExportSettings())
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "rewards_for_tests.py") == ["results.json"]


def test_a_folder_of_a_model_cannot_write_to_the_terminal(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plain_text()
    (tmp_path / "model").mkdir()
    for config in ({"model_type": HOSTILE}, {"model_type": "llama", "architectures": [HOSTILE], "dtype": HOSTILE}):
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        change(experiment, "model.init_args.policy.init_args.pretrained", str(tmp_path / "model"))
        assert main(["fit", "--config", write(experiment, tmp_path)]) == 2
    printed = capsys.readouterr()
    assert is_plain(printed.out + printed.err)


@pytest.mark.parametrize(("k", "shown"), [(8, "pass@8"), (None, "pass@k")])
def test_a_table_of_metrics_names_the_k_of_pass_at_k(
    k: int | None, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_metrics({"pass_at_k": 0.5}, title="test", k=k)
    assert shown in capsys.readouterr().out.split()
