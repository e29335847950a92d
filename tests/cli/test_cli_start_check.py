"""A column of a comparison that starts from a run without a model is refused before any run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_files import write

from ippo_lightning.cli.command_line import read_command_line
from ippo_lightning.cli.main import EXIT_USER_ERROR, main
from ippo_lightning.cli.start_check import require_start
from ippo_lightning.errors import UserError

START = "--model.init_args.policy.init_args.start_from"


def check(words: list[str], *, within: str = "runs/compare") -> None:
    require_start(read_command_line(["fit", *words]), within=Path(within))


def test_no_run_starts_if_one_of_the_later_columns_cannot(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [write(experiment, tmp_path)]
    late = {"config": config, "overrides": {START.removeprefix("--"): str(tmp_path / "nowhere")}}
    grid = {"run_dir": str(tmp_path / "compare"), "methods": {"first": {"config": config}, "late": late}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    assert main(["compare", "--config", str(tmp_path / "grid.yaml")]) == EXIT_USER_ERROR
    assert "ippo: error: late: model.policy.start_from: the run '" in capsys.readouterr().err
    assert not (tmp_path / "compare").exists()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--task", "own_data"], "ippo fit --base sft --task own_data --loop.run_dir runs/own_data/sft"),
        (
            ["--task", "gsm8k", "--model", "qwen3-0.6b", "--method", "ippo"],
            "ippo fit --base sft --task gsm8k --model qwen3-0.6b --loop.run_dir runs/gsm8k/qwen3-0.6b/sft",
        ),
    ],
    ids=["a task", "a task with a model"],
)
def test_the_line_has_the_command_that_makes_the_run(
    words: list[str], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"does not exist; run this first: ") as caught:
        check(words)
    assert str(caught.value).endswith(command)
    start = Path(command.split()[-1])
    (start / "model").mkdir(parents=True)
    with pytest.raises(UserError, match="has no model yet"):
        check(words)
    (start / "model" / "config.json").write_text("{}")
    check(words)


def test_a_start_in_the_comparison_itself_may_be_a_column_of_it(tmp_path: Path) -> None:
    check(
        ["--task", "arithmetic", START, str(tmp_path / "compare" / "sft" / "seed_1")], within=str(tmp_path / "compare")
    )
    check(["--task", "arithmetic", START, "null"])
