"""The file of a failed step: tensors and plain values, which `torch.load(weights_only=True)` accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import rank
from ippo_lightning.distributed.dtensor import full_on_rank_zero, sharded_like
from ippo_lightning.engine.random_streams import RandomStates
from ippo_lightning.errors import UserError
from ippo_lightning.policies import EncodedResponses
from ippo_lightning.records import ControlEpisodes, Episodes, Minibatch, TextEpisodes, plain_values
from ippo_lightning.storage.atomic import write_whole
from ippo_lightning.storage.iteration_files import nonfinite_files, nonfinite_path
from ippo_lightning.storage.tensor_files import read_tensors

if TYPE_CHECKING:
    from ippo_lightning.modules.base import BaseModule

FORMAT = 2
MOST_FILES = 4
"""Files of a rank in one run's folder; the file of a later step takes the place of the oldest."""
MOST_SKIPPED = 3
"""Steps that leave a file although the run goes on without their rows."""
MOST_PARAMETER_BYTES = 16 * 2**30
"""Parameters that take more are not in the file; the checkpoint before the step has to do."""
_KNOWN: dict[str, Any] = {
    kind.__name__: kind for kind in (Episodes, TextEpisodes, ControlEpisodes, Minibatch, EncodedResponses)
}
"""Records that a file may contain; a name of any other class is data, not code."""


class FailedStep(TypedDict):
    """What repeats a step."""

    message: str
    calls: list[list[Any]]
    """Arguments of the loss method, for each pass of the step."""
    losses: list[float]
    """Of the passes, up to the one that fails."""
    failed_pass: int | None
    rows: dict[int, str]
    """Row of the pass that fails to "loss" or "gradient"."""
    row_losses: list[float]
    """The loss of each row of the pass that fails, alone; empty if each pass is finite."""
    parameter: str | None
    """The first one whose gradient is not finite."""
    weights: list[str]
    """Parameters that were not finite before the step."""
    texts: list[tuple[str, str]]
    """Prompt and response of each row of the pass that fails."""
    random: RandomStates | None
    """The streams before the step."""


def write_step(folder: Path, module: BaseModule, step: FailedStep) -> Path:
    """Write a failed step, with the parameters before it; return its file.

    Args:
        folder: of the run.
        module: its trained parameters are those before the step, because no step was taken.
        step: the rest.

    Raises:
        OSError: the file cannot be written.
    """
    path = nonfinite_path(folder, iteration=module.iteration, rank=rank())
    device = next(module.parameters()).device.type
    trained = {name: parameter.detach() for name, parameter in module.trained_parameters().items()}
    is_small = sum(value.numel() * value.element_size() for value in trained.values()) <= MOST_PARAMETER_BYTES
    content = {
        "format": FORMAT,
        "module": type(module).__name__,
        "iteration": module.iteration,
        **step,
        "autocast": _name(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
        # Every rank comes here, because the gradient's norm is that of all ranks: sharded parameters can be gathered.
        "parameters": full_on_rank_zero(trained) if is_small else {},
        "fingerprint": getattr(module.backend.host, "fingerprint", ""),
    }
    write_whole(path, lambda file: torch.save(content, file))
    # Bounded: a run that is resumed and fails again and again must not fill the disk.
    for old in nonfinite_files(folder, rank=rank())[:-MOST_FILES]:
        old.unlink(missing_ok=True)
    return path


def read_failed_step(path: str | Path) -> dict[str, Any]:
    """Return the content of the file of a failed step, its tensors on the CPU; no code of the file runs.

    Args:
        path: a file of the folder `nonfinite` in a run's folder.

    Raises:
        UserError: the file does not exist, is damaged, or is no failed step.
    """
    content = read_tensors(path, name="failed step")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"failed step: {path} is no failed step of format {FORMAT}; expected nonfinite/step_*.pt of a run"
        )
    wrong = [name for name, kind in _KINDS.items() if not isinstance(content.get(name), kind)]
    if wrong or not content["calls"] or not all(isinstance(call, list) and call for call in content["calls"]):
        field = wrong[0] if wrong else "calls"
        raise UserError(f"failed step: {path} has no usable {field}; expected nonfinite/step_*.pt of a run")
    return content


_KINDS: dict[str, Any] = {
    "module": str, "iteration": int, "message": str, "calls": list, "losses": list, "failed_pass": (int, type(None)),
    "rows": dict, "row_losses": list, "parameter": (str, type(None)), "weights": list, "texts": list,
    "random": (dict, type(None)), "autocast": (str, type(None)), "parameters": dict, "fingerprint": str,
}  # fmt: skip
"""What a file contains. A file of another origin may be harmless to load, and still have anything in it."""


def load_step_parameters(module: BaseModule, step: Mapping[str, Any]) -> None:
    """Copy the parameters of a failed step into a module.

    Args:
        module: with the same trained parameters.
        step: from `read_failed_step`; without parameters, the module's own stay.

    Raises:
        UserError: a name or shape differs; nothing is copied then.
    """
    trained, saved = module.trained_parameters(), step["parameters"]
    if not saved:
        return
    differing = sorted(set(trained) ^ set(saved)) or sorted(n for n in trained if trained[n].shape != saved[n].shape)
    if differing:
        raise UserError(f"failed step: it is of another model; the first parameter that differs is {differing[0]}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(sharded_like(saved[name], parameter))


# --- arguments of a loss method as plain values ------------------------------------------------------------


def plain(value: object) -> Any:
    """Return an argument of a loss method as tensors and plain values; see `records.plain_values`.

    Args:
        value: a record, tensor, number, text, or a container of them.
    """
    return plain_values.plain(value, _KNOWN)


def rebuilt(value: Any, device: torch.device) -> Any:
    """Return what `plain` was given.

    Args:
        value: from a file.
        device: of the tensors.
    """
    return plain_values.rebuilt(value, device, _KNOWN, source="failed step")


def rows_of(arguments: tuple[object, ...]) -> Iterator[tuple[object, ...]]:
    """Yield the arguments of a loss method once for each row, with that row alone.

    Nothing is yielded if the first argument is no record of rows: another loss method may take anything.

    Args:
        arguments: the first one contains the rows, the others stay.
    """
    first, *others = arguments
    if isinstance(first, EncodedResponses):
        for row in range(len(first.response_ids)):
            yield EncodedResponses(*(tensor[row : row + 1] for tensor in first)), *others
    if isinstance(first, Minibatch):
        for row in range(len(first.episodes)):
            alone = {name: getattr(first, name) for name in ("policy_denominator", "value_denominator")}
            chosen = {name: getattr(first, name)[row : row + 1] for name in ("weights", "value_weights")}
            yield Minibatch(episodes=first.episodes.select([row]), **alone, **chosen), *others


def texts_of(module: BaseModule, arguments: tuple[object, ...]) -> list[tuple[str, str]]:
    """Return prompt and response of each row as text, special tokens included.

    Args:
        module: its policy's tokenizer reads the ids; without one there are no texts.
        arguments: of the loss method.
    """
    tokenizer = getattr(getattr(module, "policy", None), "tokenizer", None)
    record: Any = getattr(arguments[0], "episodes", arguments[0])
    if tokenizer is None or not all(hasattr(record, name) for name in _IDS):
        return []
    prompts, prompt_mask, responses, response_mask = (getattr(record, name) for name in _IDS)

    def decoded(ids: Tensor, mask: Tensor) -> list[str]:
        return [tokenizer.decode(row[kept].tolist()) for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]

    return list(zip(decoded(prompts, prompt_mask), decoded(responses, response_mask), strict=True))


_IDS = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
