"""What each of two processes does in an evaluation of a run; the tests compare it with one process alone."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ippo_lightning.cli import evaluate_runs
from ippo_lightning.cli.main import main as ippo
from ippo_lightning.distributed.collectives import end_process_group


def main(folder: Path, run: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # The command ends the group, and the second one of this process needs it again.
    evaluate_runs.end_process_group = lambda: None  # type: ignore[assignment]
    codes = {}
    words: dict[str, list[str]] = {
        "whole": ["--batch_size", "4"],  # two batches, of four prompts and of two
        "resumed": ["--batch_size", "4"],
        "one": ["--batch_size", "100"],  # one batch, so that a rank has none
        "wrong": ["--batch_size", "4", "--samples", "1"],
    }
    for name, own in words.items():
        output = folder / ("whole" if name == "wrong" else name)
        given = ["--fabric.devices", "2", "--output", str(output), *own]
        codes[name] = ippo(["evaluate", run, *given])
    end_process_group()
    rank = os.environ["RANK"]
    content: dict[str, Any] = {"codes": codes}
    (folder / f"rank{rank}.json").write_text(json.dumps(content), encoding="utf-8")
