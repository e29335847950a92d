"""Compares the folders of two runs that should be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

OF_THE_MACHINE = ("time/", "memory/peak")


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a log without its clock and the process's memory."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(OF_THE_MACHINE)} for row in found]


def table(path: Path) -> list[tuple[str, ...]]:
    """The lines of a CSV file without its clock and the process's memory."""
    lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [column for column, name in enumerate(lines[0]) if not name.startswith(OF_THE_MACHINE)]
    return [tuple(line[column] for column in kept) for line in lines]


def assert_same_runs(first: Path, second: Path) -> None:
    """Compare parameters, states, logs, results, checkpoints and the final model."""
    one, two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (first, second))
    assert one["parameters"].keys() == two["parameters"].keys()
    assert all(torch.equal(one["parameters"][name], two["parameters"][name]) for name in one["parameters"])
    for name in ("progress", "position", "callbacks", "best"):
        assert same_nested(one[name], two[name]), name
    for name in ("history.jsonl", "evaluations.jsonl", "episodes.jsonl"):
        assert rows(first / name) == rows(second / name), name
    assert table(first / "csv" / "metrics.csv") == table(second / "csv" / "metrics.csv")
    results = [json.loads((run / "results.json").read_text(encoding="utf-8")) for run in (first, second)]
    of_the_clock = {"seconds": 0, "sha256": ""}
    assert results[0] | of_the_clock == results[1] | of_the_clock
    # a signal leaves a checkpoint of its own iteration, which then is among the newest few
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (first, second)]
    assert len(kept[0]) == len(kept[1])
    assert newest_of(kept[0]) == newest_of(kept[1])
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]


def newest_of(names: list[str]) -> list[str]:
    """The other names, and the newest of those under their iteration."""
    under_iteration = [name for name in names if name.startswith("iteration_")]
    return [*(name for name in names if name not in under_iteration), max(under_iteration)]


def same_nested(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_nested(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same_nested, first, second))
    return bool(first == second)
