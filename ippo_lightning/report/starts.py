"""Where a run started: what `ippo evaluate RUN` measured of the model that it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ippo_lightning.report.display import number
from ippo_lightning.report.records import Run
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.public_command import public_command
from ippo_lightning.storage.run_folder import CONFIG, EVALUATED, EVALUATION, START

_LARGEST_FILE = 4 * 1024 * 1024
_SIZES = {"prompts": "num_prompts", "episodes": "num_episodes"}
"""Of the settings of an evaluation, and of the final test that it is compared with."""
_SAMPLING = ("temperature", "top_p", "max_new_tokens", "greedy")
"""What changes the numbers of an evaluation, beside the size."""


def start_scores(run_dir: Path, *, results: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Return the numbers of the model that training began with on the test split; empty if nothing measured it.

    Args:
        run_dir: folder of the run, in which `ippo evaluate RUN --model start` writes.
        results: of the run's own final test; an evaluation of another size is then left out. One that samples in
            another way is always left out.
    """
    for path in sorted((run_dir / EVALUATED).glob(f"*/{EVALUATION}")):
        content = evaluation_in(path)
        settings = _mapping(content.get("settings"))
        is_of_start = _mapping(settings.get("model")).get("name") == START and settings.get("split") == "test"
        if is_of_start and _is_same_test(settings, results or {}) and _is_sampled_alike(settings, run_dir):
            values = {str(name): number(_mapping(found).get("value")) for name, found in _numbers(content).items()}
            return {name: value for name, value in values.items() if value is not None}
    return {}


def evaluation_in(path: Path) -> Mapping[str, Any]:
    """Return what an `evaluation.json` contains; empty if it is not what was written.

    Args:
        path: of the file, which may be of any origin.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _LARGEST_FILE else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and not has_wrong_checksum(content) else {}


def command_of_start(run: Run) -> str:
    """Return the command that measures the start of a run, beside its end and in the same way."""
    return public_command(["ippo", "evaluate", str(run.folder), "--baseline", START])


def _is_same_test(settings: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    pairs = [(settings.get(name), results.get(key)) for name, key in _SIZES.items()]
    pairs.append((_mapping(settings.get("sampling")).get("num_responses"), results.get("samples_per_prompt")))
    return all(given == wanted for given, wanted in pairs if given is not None and wanted is not None)


def _is_sampled_alike(settings: Mapping[str, Any], run_dir: Path) -> bool:
    """Return whether an evaluation samples as the final test of the run; null in its `evaluation` is as in training."""
    try:
        config = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return True  # nothing to compare with
    arguments = _mapping(_mapping(_mapping(config).get("model")).get("init_args"))
    own, given = _mapping(arguments.get("evaluation") or arguments.get("sampling")), _mapping(settings.get("sampling"))
    return all(own[name] == given[name] for name in _SAMPLING if name in own and name in given)


def _numbers(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(content.get("numbers"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
