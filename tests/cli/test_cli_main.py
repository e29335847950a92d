"""What ends a run in the middle is one line for a person, and no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_files import change, write

from ippo_lightning.cli.main import EXIT_FAILURE, EXIT_INTERRUPT, EXIT_USER_ERROR, main
from ippo_lightning.influence import ChecksumError


def test_a_lost_rank_is_one_line(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:58012.")

    monkeypatch.setattr("ippo_lightning.run.iteration_loop.any_rank", closed)
    assert main(["fit", "--config", write(experiment, tmp_path)]) == EXIT_FAILURE
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ippo:")]
    assert len(lines) == 1
    assert "rank 0 lost another rank" in lines[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.40 GiB.\nGPU 0 has a total capacity of 79 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        MemoryError(),
    ],
    ids=["device", "cpu", "python"],
)
def test_memory_that_runs_out_outside_of_a_pass_is_one_line(
    error: Exception,
    experiment: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("ippo_lightning.run.iteration_loop.any_rank", full)
    assert main(["fit", "--config", write(experiment, tmp_path)]) == EXIT_FAILURE
    captured = capsys.readouterr().err
    lines = [line for line in captured.splitlines() if line.startswith("ippo:")]
    assert len(lines) == 1
    assert "the device's memory does not suffice" in lines[0]
    assert "Traceback" not in captured


def test_a_score_that_disagrees_with_autograd_is_one_line(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any, **__: Any) -> None:
        raise ChecksumError("the weighted sum of the scores of 2 episodes is 1, but plain autograd gives 2")

    monkeypatch.setattr("ippo_lightning.influence.hook_scores.verify_checksum", wrong)
    experiment["callbacks"] = [{"class_path": "ippo_lightning.callbacks.InfluenceFilter"}]
    assert main(["fit", "--config", write(experiment, tmp_path)]) == EXIT_FAILURE
    captured = capsys.readouterr().err
    assert "ippo: stopped: InfluenceFilter: the weighted sum of the scores of 2 episodes" in captured
    assert "Traceback" not in captured


LEAVES = """
import os, sys
from lightning import Callback

def in_a_call(prompts, responses, examples):
    sys.exit(0)

class InAHook(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        sys.exit(0)

class Generator(Callback):
    def on_train_start(self, trainer, pl_module):
        raise GeneratorExit
"""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.init_args.reward", "leaves_for_tests.in_a_call", "leaves_for_tests.in_a_call raised SystemExit: 0"),
        ("model.init_args.reward", "leaves_at_import.reward", "SystemExit was raised in"),
        ("callbacks", [{"class_path": "leaves_for_tests.InAHook"}], "SystemExit was raised in"),
        ("callbacks", [{"class_path": "leaves_for_tests.Generator"}], "GeneratorExit was raised in"),
    ],
    ids=["reward", "import", "callback", "generator"],
)
def test_a_run_that_is_left_in_the_middle_does_not_end_with_success(
    key: str, value: Any, said: str, experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leaves_for_tests.py").write_text(LEAVES, encoding="utf-8")
    (tmp_path / "leaves_at_import.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    change(experiment, key, value)
    assert main(["fit", "--config", write(experiment, tmp_path)]) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ippo:")]
    assert len(lines) == 1
    assert said in lines[0]


def test_printing_the_configuration_still_ends_with_success(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:  # so does the parser
        main(["fit", "--config", write(experiment, tmp_path), "--print_config"])
    assert not caught.value.code
    assert "max_iterations: 4" in capsys.readouterr().out


def test_a_plain_class_among_the_callbacks_of_a_yaml_is_one_line(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain_for_tests.py").write_text("class Hooks:\n    def on_update_end(self, *given): ...\n")
    change(experiment, "callbacks", [{"class_path": "plain_for_tests.Hooks"}])
    assert main(["fit", "--config", write(experiment, tmp_path)]) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ippo:")]
    assert len(lines) == 1
    assert "plain_for_tests.Hooks" in lines[0]


@pytest.mark.parametrize(("said", "line"), [("", "at once; the last checkpoint is kept"), ("it goes on", "it goes on")])
def test_an_interruption_states_what_is_kept(
    said: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt(*[said] * bool(said))

    monkeypatch.setattr("ippo_lightning.cli.main.run", interrupted)
    assert main(["fit"]) == EXIT_INTERRUPT
    assert capsys.readouterr().err == f"ippo: interrupted: {line}\n"
