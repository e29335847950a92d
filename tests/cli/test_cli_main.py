"""What ends a run in the middle is one line for a person, and no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_files import write

from ippo_lightning.cli.main import EXIT_FAILURE, main


def test_a_lost_rank_is_one_line(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:58012.")

    monkeypatch.setattr("ippo_lightning.run.fabric_loop.any_rank", closed)
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

    monkeypatch.setattr("ippo_lightning.run.fabric_loop.any_rank", full)
    assert main(["fit", "--config", write(experiment, tmp_path)]) == EXIT_FAILURE
    captured = capsys.readouterr().err
    lines = [line for line in captured.splitlines() if line.startswith("ippo:")]
    assert len(lines) == 1
    assert "the device's memory does not suffice" in lines[0]
    assert "Traceback" not in captured
