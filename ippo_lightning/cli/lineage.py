"""What a model was trained from: the runs that it continues, and the model at the beginning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ippo_lightning.cli.yaml_text import load_yaml
from ippo_lightning.errors import UserError
from ippo_lightning.storage.public_text import public_name
from ippo_lightning.storage.run_folder import CONFIG, MODEL

_MODELS = "experiments/models/"
_MOST_RUNS = 16
_LARGEST_CONFIG = 4 * 1024 * 1024


class Ancestor(NamedTuple):
    """A run, an adapter or a model that training began with."""

    kind: str
    """`run`, `adapter` or `model`."""
    name: str
    """For others: a Hub id, the short name of a packaged model, or a folder's name."""


def lineage(config: object) -> list[Ancestor]:
    """Return what training began with, and what that began with, the nearest first; empty for a new model.

    Args:
        config: of the run, as loaded. The folders of the runs in it are read if they are still there.
    """
    return list(_ancestors(config, seen=()))


def base_of(ancestors: list[Ancestor]) -> str | None:
    """Return the name of the model at the beginning; else of the oldest run that is known; None for a new model.

    Args:
        ancestors: see `lineage`.
    """
    models = [ancestor.name for ancestor in ancestors if ancestor.kind == "model"]
    return next(iter(models), None) or (ancestors[-1].name if ancestors else None)


def adapter_base(config: object) -> str | None:
    """Return the name of the model that an adapter alone belongs to; None for a new model.

    Args:
        config: see `lineage`.
    """
    policy = _policy_of(config)
    start, pretrained = policy.get("start_from"), policy.get("pretrained")
    # A run without an adapter leaves a model, which is the base of this one.
    if start and _is_file(_place(str(start)) / MODEL / "config.json"):
        return public_name(f"{start}/{MODEL}")
    return _model_name(str(pretrained)) if pretrained else None


def lineage_text(ancestors: list[Ancestor]) -> str:
    """Return the lineage in words, the nearest first.

    Args:
        ancestors: see `lineage`.

    Example:
        >>> lineage_text([Ancestor("run", "runs/gsm8k/sft"), Ancestor("model", "Qwen/Qwen3-0.6B")])
        'the run runs/gsm8k/sft, which began with the model Qwen/Qwen3-0.6B'
    """
    return ", which began with ".join(f"the {ancestor.kind} {ancestor.name}" for ancestor in ancestors)


def _ancestors(config: object, *, seen: tuple[Path, ...]) -> Iterator[Ancestor]:
    policy = _policy_of(config)
    start, pretrained = policy.get("start_from"), policy.get("pretrained")
    adapter = _mapping(policy.get("lora")).get("adapter_path")
    base = Ancestor("model", _model_name(str(pretrained))) if pretrained else None
    if start:
        run = _place(str(start))
        if run in seen:  # a circle
            return
        yield Ancestor("run", public_name(str(start)))
        theirs = _config_in(run, seen)
        if theirs is not None:
            yield from _ancestors(theirs, seen=(*seen, run))
        elif base is not None and policy.get("lora"):
            yield base  # the adapter of that run is continued on this model; without one, it is not read
        return
    if adapter:
        yield Ancestor("adapter", public_name(str(adapter)))
    source = _run_of(Path(str(pretrained))) if pretrained else None
    place = _place(str(source))
    if source is not None and place in seen:
        return
    theirs = _config_in(place, seen) if source is not None else None
    if theirs is not None:
        yield Ancestor("run", public_name(str(source)))
        yield from _ancestors(theirs, seen=(*seen, place))
    elif base is not None:
        yield base


def _model_name(pretrained: str) -> str:
    return public_name(pretrained).removeprefix(_MODELS)


def _run_of(model: Path) -> Path | None:
    """Return the run in whose folder a model lies: `RUN/model`, or `RUN/model/merged`."""
    places = (model, model.parent)
    return next((place.parent for place in places if place.name == MODEL), None)


def _place(path: str) -> Path:
    """Return the folder that a configuration names, without `~` and links, as far as that is possible."""
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # no user of this name, a circle of links, or a NUL
        return Path(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _config_in(run: Path, seen: tuple[Path, ...]) -> object | None:
    path = run / CONFIG
    if len(seen) >= _MOST_RUNS:
        return None
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            return None
        found: object = load_yaml(path.read_text(encoding="utf-8"), origin=str(path))
    except (OSError, ValueError, UserError):
        return None
    return found


def _policy_of(config: object) -> Mapping[str, Any]:
    policy = _mapping(_mapping(_mapping(_mapping(config).get("model")).get("init_args")).get("policy"))
    # the policy may be written with a class_path or as its arguments alone
    return _mapping(policy.get("init_args")) or policy


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
