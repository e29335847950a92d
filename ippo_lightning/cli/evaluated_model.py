"""Which model `ippo evaluate RUN` measures: that of a checkpoint, the start of the run, or another one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ippo_lightning.cli.experiment_paths import axis_file, axis_names, with_packaged_paths
from ippo_lightning.cli.settings import EvaluateSettings
from ippo_lightning.cli.yaml_text import load_yaml, read_text
from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import COMPARISON, CONFIG, START, RunFolder

if TYPE_CHECKING:
    from jsonargparse import Namespace

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_OF_ANOTHER_MODEL = {
    "start_from": None,
    "config": None,
    "tokenizer": None,
    "pad_token": None,
    "lora": None,
    "quantization": None,
    "compute_dtype": None,
    "reference": "none",
    "trust_remote_code": False,
}
"""What another model does not share with that of the run; it needs no reference, because nothing is trained, and code
that came with the model of the run was allowed for that model alone."""


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of a run.

    Args:
        checkpoint: its name or path; None for the model as it is built.
        pretrained: in place of the model that the run began with; None to leave that.
        option: by which the user has named it, for messages.
        settings: of the policy, from a file of the model axis.
        is_of_run: the run has trained it.
    """

    checkpoint: str | None
    pretrained: str | None = None
    option: str = "model"
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_of_run: bool = False


@dataclass(frozen=True)
class EvaluationJob:
    """One column of a table.

    Args:
        run: folder of the run.
        name: of the run, in the table.
        model: which of its models.
        output: where the results go, if the user has said so.
        remote_code: run code that comes with a model which is not of the run.
    """

    run: Path
    name: str
    model: EvaluatedModel
    output: Path | None
    remote_code: bool


def model_of(run: Path, settings: EvaluateSettings) -> EvaluatedModel:
    """Return which model of a run is evaluated, by the settings and by what is on disk.

    Args:
        run: folder of a run.
        settings: `model` and `checkpoint` are read.

    Raises:
        UserError: the folder is no run, or has no model; or the model of the settings does not exist.
    """
    if (run / COMPARISON).is_file():
        raise UserError(f"run: {run} is a comparison; expected one of its runs, {run}/METHOD/seed_N")
    if not (run / CONFIG).is_file():
        raise UserError(f"run: {run} has no {CONFIG}; expected the folder of a run of `ippo fit`")
    if settings.model is not None:
        return named_model(settings.model, option="model")
    folder = RunFolder(run)
    if settings.checkpoint != "last" or folder.has_checkpoint():
        return EvaluatedModel(settings.checkpoint)
    merged = folder.model / "merged"  # of a run that trained an adapter
    if folder.model.is_dir():
        return EvaluatedModel(None, str(merged if merged.is_dir() else folder.model), is_of_run=True)
    raise UserError(
        f"run: {run} has neither a checkpoint nor a final model; wait for its first checkpoint, or measure the model "
        f"that it began with: --model {START}"
    )


def named_model(name: str, *, option: str) -> EvaluatedModel:
    """Return a model by its name, as far as it can be checked without loading it.

    Args:
        name: a folder, a file of `experiments/models/` by its name or path, a Hub id, `package:NAME` or `start`.
        option: by which the user has named it.

    Raises:
        UserError: it is none of these, it is the folder of an adapter, or a file that names no model.
    """
    if name == START:
        return EvaluatedModel(None, option=option)
    path = Path(name).expanduser()
    if (path / "adapter_config.json").is_file():
        raise UserError(f"{option}: {name} is an adapter; expected a full model, such as the folder `merged` beside it")
    if path.is_dir():
        return EvaluatedModel(None, str(path), option)
    if name.endswith((".yaml", ".yml")) or name in axis_names("model"):
        return _model_of_file(name, option=option)
    # In `runs/model` a folder `runs` of this machine shows that no Hub id is meant.
    is_hub_id = _HUB_ID.fullmatch(name) is not None and (path.parent == Path() or not path.parent.is_dir())
    if is_hub_id or name.startswith("package:"):
        return EvaluatedModel(None, name, option)
    raise UserError(
        f"{option}: {name} does not exist; expected a folder, a Hub id, package:NAME, a file of experiments/models, or "
        f"{START}"
    )


def _model_of_file(name: str, *, option: str) -> EvaluatedModel:
    try:
        path = axis_file("model", name)
    except UserError as error:
        raise UserError(f"{option}: {str(error).partition(': ')[2]}") from error
    found: Any = with_packaged_paths(load_yaml(read_text(path), origin=str(path)))
    for key in ("model", "init_args", "policy", "init_args"):
        found = found.get(key) if isinstance(found, Mapping) else None
    pretrained = found.get("pretrained") if isinstance(found, Mapping) else None
    if not pretrained:
        raise UserError(f"{option}: {path} names no pretrained model to measure; name another file")
    # What the weights are loaded with. Its adapter is none that was trained.
    settings = {key: value for key, value in found.items() if key != "pretrained" and key not in _OF_ANOTHER_MODEL}
    settings |= {key: found[key] for key in ("tokenizer", "pad_token") if key in found}
    return EvaluatedModel(None, str(pretrained), option, settings)


def use_model(experiment: Namespace, model: EvaluatedModel, *, remote_code: bool = False) -> None:
    """Let the policy of a parsed experiment be another model, with its own tokenizer.

    Args:
        experiment: changed in place. Prompts and system prompt stay, and chat template and data type if the model has
            none of its own.
        model: with a name.
        remote_code: run code that comes with a model that is not of the run (`--trust_remote_code`).

    Raises:
        UserError: the policy is not one that loads a model by its name.
    """
    pretrained = model.pretrained
    policy: Any = experiment.model.init_args.get("policy")
    arguments = policy.get("init_args") if policy is not None else None
    if arguments is None or "pretrained" not in arguments:
        if model.is_of_run:
            raise UserError(
                f"run: the run has no checkpoint, and {pretrained} is no language model; run `ippo fit --resume`, or "
                f"measure the policy that it began with: --model {START}"
            )
        raise UserError(
            f"{model.option}: {pretrained} cannot replace the policy of the run, which is no CausalLMPolicy"
        )
    own_code = arguments.get("trust_remote_code", False)
    arguments["pretrained"] = pretrained
    for name, value in _OF_ANOTHER_MODEL.items():
        if name in arguments:
            arguments[name] = value
    if "trust_remote_code" in arguments:
        arguments["trust_remote_code"] = own_code if model.is_of_run else remote_code
    for name, value in model.settings.items():
        if name not in arguments:
            raise UserError(f"{model.option}: {name} is no argument of the policy of the run; expected a fitting file")
        arguments[name] = value
    # a second large model or an adapter on the old one, which an evaluation does not use
    if arguments.get("value") in ("separate", "adapter"):
        arguments["value"] = "head"
