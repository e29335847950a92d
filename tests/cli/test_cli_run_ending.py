"""`ippo fit` ends with where the model is, and with commands that work as they are printed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from experiment_files import change, write

from ippo_lightning.cli.main import main
from ippo_lightning.cli.run_ending import ending_lines
from ippo_lightning.storage.run_folder import RunFolder

POLICY = "model.init_args.policy.init_args"


def ending(text: str) -> tuple[list[str], list[str]]:
    """The lines on places, and the commands."""
    before, _, after = text.partition("Next:\n")
    return [line for line in before.splitlines() if ": " in line and "│" not in line], after.splitlines()


@pytest.mark.parametrize(
    "kind", ["full", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("adapter", "no model"))]
)
def test_the_last_lines_name_the_model_and_commands_that_run(
    kind: str,
    experiment: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    change(experiment, "loop.run_dir", "my runs/first")  # a folder that has to be quoted
    change(experiment, "loop.max_iterations", 1)
    change(experiment, "loop.save_model", kind != "no model")
    if kind == "adapter":
        change(experiment, f"{POLICY}.lora", {"r": 2})
    assert main(["fit", "--config", write(experiment, tmp_path)]) == 0
    places, commands = ending(capsys.readouterr().out)
    expected = {
        "full": ["Model: my runs/first/model"],
        "adapter": ["Merged model: my runs/first/model/merged", "Adapter: my runs/first/model/adapter"],
        "no model": ["Checkpoint: my runs/first/checkpoints/last.ckpt"],
    }
    assert places[-len(expected[kind]) :] == expected[kind]
    for place in expected[kind]:
        assert Path(place.partition(": ")[2]).exists()
    assert [shlex.split(command)[1] for command in commands] == ["evaluate", "report", "export"]
    for command in commands if kind == "full" else commands[1:2]:
        assert main(shlex.split(command)[1:]) == 0


def test_a_run_that_is_refused_names_no_model(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(experiment, "model.init_args.reward", "rewards_for_tests.raises")
    assert main(["fit", "--config", write(experiment, tmp_path)]) != 0
    assert "Next:" not in capsys.readouterr().out


def test_a_run_in_environments_names_commands_that_take_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "policy.safetensors").touch()
    assert ending_lines(RunFolder(tmp_path), evaluates="episodes") == [
        f"Model: {tmp_path / 'model'}",
        "Next:",
        f"  ippo evaluate {tmp_path}",
        f"  ippo report {tmp_path}",
    ]
