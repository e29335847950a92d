"""A step whose loss or gradient is not finite: where the NaN begins, and a file that repeats the step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import any_rank, rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.engine.random_streams import RandomStates, StepStreams, continue_own_streams, own_streams
from ippo_lightning.modules.failed_step_file import (
    MOST_SKIPPED,
    FailedStep,
    load_step_parameters,
    plain,
    rebuilt,
    rows_of,
    texts_of,
    write_step,
)
from ippo_lightning.records.finite_weights import broken_weights
from ippo_lightning.storage.iteration_files import nonfinite_files, nonfinite_path

if TYPE_CHECKING:
    from ippo_lightning.modules.base import BaseModule

_LOG = logging.getLogger(__name__)


@dataclass
class StepTrace:
    """The passes of the optimizer step that is under way; empty between two steps."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    """Arguments of the loss method, one entry per backward."""
    random: RandomStates | None = None
    """The streams of this rank before the first of them."""
    is_over: bool = False
    """True once no step was taken, because the gradient is not finite: the next pass is that of another step."""
    _streams: StepStreams = field(default_factory=StepStreams, compare=False, repr=False)

    def note(self, arguments: tuple[object, ...]) -> None:
        """Add a pass.

        Args:
            arguments: of the loss method.
        """
        if self.is_over or not self.calls:
            self.calls, self.random, self.is_over = [], self._streams.before_step(), False
        self.calls.append(arguments)

    def end_step(self) -> None:
        """Forget the passes: a step was taken, or its gradients were removed."""
        self.calls, self.random, self.is_over = [], None, False


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Where a step stops being finite."""

    losses: tuple[float, ...]
    """Of its passes, up to the one that fails."""
    failed_pass: int | None = None
    """The first pass with a loss or gradient that is not finite; None if each is finite when it is repeated."""
    rows: Mapping[int, str] = field(default_factory=dict)
    """Row of that pass to "loss" or "gradient", for rows that fail alone."""
    row_losses: tuple[float, ...] = ()
    """The loss of each row of that pass, alone."""
    parameter: str | None = None
    """The first parameter that the backward of that pass gives a gradient that is not finite."""
    weights: tuple[str, ...] = ()
    """Parameters that are not finite before the step."""

    def __str__(self) -> str:
        """Return one clause for a message."""
        if self.weights:
            more = f" and {len(self.weights) - 1} more weights" if len(self.weights) > 1 else ""
            return f"before the step, NaN or infinity is in {self.weights[0]}{more}: an earlier step broke them"
        if self.failed_pass is None:
            return "each pass of the step is finite when it is repeated"
        rows = ", ".join(f"row {row} ({quantity})" for row, quantity in list(self.rows.items())[:_NAMED])
        more = f" and {len(self.rows) - _NAMED} more" if len(self.rows) > _NAMED else ""
        verb = "breaks" if len(self.rows) == 1 else "each break"
        alone = f"{rows}{more} of the pass {verb} it alone" if rows else "no row of the pass breaks it alone"
        where = f", first the gradient of {self.parameter}" if self.parameter else ""
        return f"pass {self.failed_pass} of the step is not finite{where}; {alone}"


_NAMED = 3  # rows in one message
Watch = Callable[[], AbstractContextManager[object]]


def diagnose(
    module: BaseModule,
    calls: Sequence[tuple[object, ...]],
    random: RandomStates | None,
    *,
    watch: Watch = nullcontext,
) -> Diagnosis:
    """Repeat the passes of a step until one is not finite, then its rows one by one; no gradient stays behind.

    Costs a second step, and one forward and backward per row of the pass that fails.

    Args:
        module: with the parameters before the step.
        calls: see `StepTrace`.
        random: the streams before the step; they continue from there, so that dropout draws what it drew.
        watch: entered around each pass, and not around single rows.
    """
    if random is not None:
        continue_own_streams(random)
    # Frozen ones too: another precision, or a file, may have broken them.
    weights = tuple(broken_weights(dict(module.named_parameters())))
    losses: list[float] = []
    for number, arguments in enumerate(calls):
        with watch():
            loss, parameter = _repeated(module, arguments)
        losses.append(loss)
        if math.isfinite(loss) and parameter is None:
            continue
        alone = [_repeated(module, row) for row in rows_of(arguments)]
        broken = {row: quantity for row, found in enumerate(alone) if (quantity := _quantity(*found)) is not None}
        return Diagnosis(
            losses=tuple(losses),
            failed_pass=number,
            rows=broken,
            row_losses=tuple(loss for loss, _ in alone),
            parameter=parameter,
            weights=weights,
        )
    return Diagnosis(losses=tuple(losses), weights=weights)


def _quantity(loss: float, parameter: str | None) -> str | None:
    return "loss" if not math.isfinite(loss) else "gradient" if parameter is not None else None


def _repeated(module: BaseModule, arguments: tuple[object, ...]) -> tuple[float, str | None]:
    """Go forward and backward; return the loss, and the first parameter, in that order, with a broken gradient."""
    broken: list[str] = []

    def watch(name: str) -> Callable[[Tensor], None]:
        def check(parameter: Tensor) -> None:
            if not broken and parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                broken.append(name)

        return check

    trained = module.trained_parameters()
    _forget_gradients(trained.values())
    hooks = [parameter.register_post_accumulate_grad_hook(watch(name)) for name, parameter in trained.items()]
    # Not through the wrapper, and not averaged: other ranks repeat passes of their own, perhaps fewer.
    alone = nullcontext() if module.is_free else module.no_sync(True)
    try:
        with alone:
            result = getattr(module, module.loss_method)(*arguments)
            loss: Tensor = result[0] if isinstance(result, tuple) else result
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        _forget_gradients(trained.values())
    return float(loss.detach()), broken[0] if broken else None


def _forget_gradients(parameters: Any) -> None:
    for parameter in parameters:
        parameter.grad = None


class FailedStepError(FloatingPointError):
    """A loss or gradient that is not finite: no step was taken, and all ranks raise this."""


@contextmanager
def keeping_failed_step(module: BaseModule) -> Iterator[None]:
    """Write what repeats a step that is not finite into the run's folder, and name the file in the error.

    Args:
        module: takes the optimizer steps of an iteration inside the block.

    Raises:
        FloatingPointError: from inside the block, a `FailedStepError` if there is a step to repeat; the diagnosis and
            the file are added to its message.
    """
    module.step_trace = StepTrace()
    try:
        yield
    except FloatingPointError as error:
        # A score or a reward that is not finite ends the run between two steps: there is no step to repeat.
        if not module.step_trace.calls:
            raise
        # Over after the norm of all ranks: before that, the error may be of this rank alone.
        kind = FailedStepError if module.step_trace.is_over else FloatingPointError
        raise kind(f"step {module.iteration}: {error}; {_kept(module, str(error))}") from error
    finally:
        module.step_trace = StepTrace()


def keep_skipped_step(module: BaseModule, message: str) -> None:
    """Write a step whose broken rows are left out, unless the run's folder has enough of them; all ranks call this.

    Args:
        module: before the step is repeated without these rows.
        message: names the rows.
    """
    folder = getattr(module.backend.host, "default_root_dir", None)
    kept = [] if folder is None else nonfinite_files(Path(folder), rank=rank())
    is_written = any(_is_of(path, module.iteration) for path in kept)
    has_room = folder is not None and len(kept) < MOST_SKIPPED and not is_written
    # Together: sharded parameters are gathered.
    if not any_rank(has_room, device=next(module.parameters()).device):
        return
    # The run goes on, so its streams must not depend on whether a file was written.
    streams = own_streams()
    try:
        _LOG.warning("step %d: %s", module.iteration, _kept(module, message))
    finally:
        continue_own_streams(streams)


def _is_of(path: Path, iteration: int) -> bool:
    return path == nonfinite_path(path.parents[1], iteration=iteration, rank=rank())


def _kept(module: BaseModule, message: str) -> str:
    """Write the file; return a clause with the diagnosis that names the file."""
    trace = module.step_trace
    # With sharded parameters each pass is a collective, and other ranks may have other passes.
    found = None if is_sharded(module) else diagnose(module, trace.calls, trace.random)
    said = "" if found is None else f"{found}; "
    folder = getattr(module.backend.host, "default_root_dir", None)
    if folder is None:
        return f"{said}the loop has no default_root_dir for a file of the step"
    number = found.failed_pass if found is not None else None
    step: FailedStep = {
        "message": message,
        "calls": [[plain(argument) for argument in call] for call in trace.calls],
        "losses": [] if found is None else list(found.losses),
        "failed_pass": number,
        "rows": {} if found is None else dict(found.rows),
        "row_losses": [] if found is None else list(found.row_losses),
        "parameter": None if found is None else found.parameter,
        "weights": [] if found is None else list(found.weights),
        "texts": texts_of(module, trace.calls[0 if number is None else number]),
        "random": trace.random,
    }
    try:
        path = write_step(Path(folder), module, step)
    except OSError as error:  # a full disk must not hide the first error
        return f"{said}its file in {folder} cannot be written ({error.strerror})"
    return f"{said}`ippo replay {folder}` repeats it; see {path}"


def replay_failed_step(module: BaseModule, step: Mapping[str, Any], *, watch: Watch = nullcontext) -> Diagnosis:
    """Repeat a failed step with its parameters, random streams and precision; return where it fails.

    Args:
        module: built as that of the run, on any device, with or without a loop. Its trained parameters become those of
            the step.
        step: from `read_failed_step`. An entry may be changed first: with `step["autocast"] = None` the step is
            repeated in the precision of the weights.
        watch: see `diagnose`.

    Raises:
        UserError: the step is of a module with other parameters.
    """
    load_step_parameters(module, step)
    module.iteration = int(step["iteration"])  # in the first ones the critic may learn alone
    device = next(module.parameters()).device
    calls = [tuple(rebuilt(value, device) for value in call) for call in step["calls"]]
    name = step["autocast"]
    with torch.autocast(device.type, dtype=getattr(torch, name or "bfloat16"), enabled=name is not None):
        return diagnose(module, calls, step["random"], watch=watch)
