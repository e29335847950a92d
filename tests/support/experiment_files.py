"""Changing an experiment and writing it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
"""A language model that runs in milliseconds."""


def change(experiment: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making sections on the way; a number is a place in a list."""
    *sections, last = key.split(".")
    for section in sections:
        experiment = experiment[int(section)] if section.isdigit() else experiment.setdefault(section, {})
    place: Any = int(last) if last.isdigit() else last
    experiment[place] = value


def write(experiment: dict[str, Any], folder: Path) -> str:
    """Write an experiment as YAML; return the file's name."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment), encoding="utf-8")
    return str(path)
