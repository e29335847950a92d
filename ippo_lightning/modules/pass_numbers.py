"""The numbers of one pass, module by module, forward and backward: where the first one that is not finite appears."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Numbers:
    """What the tensors at one place contain.

    Args:
        largest: absolute value of the largest finite number.
        broken: "NaN", "inf" or "" for finite.
    """

    largest: float
    broken: str = ""

    def __str__(self) -> str:
        """Return "NaN", "inf", or the largest number with two digits."""
        return self.broken or f"{self.largest:.1e}"

    def merged(self, other: Numbers | None) -> Numbers:
        """Return the numbers of both."""
        if other is None:
            return self
        # NaN first: it comes from infinity, and not the other way round.
        kinds = {self.broken, other.broken}
        return Numbers(max(self.largest, other.largest), next((kind for kind in ("NaN", "inf") if kind in kinds), ""))


@dataclass
class Place:
    """One module in one pass; a number that the pass has not is None."""

    name: str
    kind: str
    """Name of its class."""
    input: Numbers | None = None
    output: Numbers | None = None
    output_gradient: Numbers | None = None
    input_gradient: Numbers | None = None

    @property
    def is_finite(self) -> bool:
        """Whether all four are finite."""
        found = (self.input, self.output, self.output_gradient, self.input_gradient)
        return not any(numbers is not None and numbers.broken for numbers in found)


@dataclass
class First:
    """Where one direction of a pass stops being finite."""

    breaks: Place | None = None
    """The innermost module that turns finite numbers into others; None if no module does."""
    seen: Place | None = None
    """The first module at which a number that is not finite was seen."""

    def note(self, place: Place, before: Numbers | None, after: Numbers) -> None:
        """Take in what went into a module and what came out of it, in the order of the pass.

        Args:
            place: the module.
            before: what went in; None if unknown.
            after: what came out.
        """
        if not after.broken:
            return
        self.seen = self.seen or place
        # Inner modules end before the outer ones that contain them, so the first one is the innermost.
        if self.breaks is None and before is not None and not before.broken:
            self.breaks = place


class PassNumbers:
    """Records the numbers of one pass. The forward stays bit for bit; sums of gradients may round otherwise.

    Args:
        module: goes forward and backward while `recording` is open.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.places: dict[str, Place] = {}
        """By name, in the order in which the pass reaches them."""
        self.forward, self.backward = First(), First()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the pass inside the block, and forget an earlier one."""
        self.places, self.forward, self.backward = {}, First(), First()
        handles: list[RemovableHandle] = []
        for name, part in self.module.named_modules():
            # Lists of modules are never called, and the module itself is not called by its `forward`.
            if name:
                handles.append(part.register_forward_pre_hook(self._before(name), with_kwargs=True))
                handles.append(part.register_forward_hook(self._after(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _place(self, name: str, part: nn.Module) -> Place:
        return self.places.setdefault(name, Place(name=name, kind=type(part).__name__))

    def _before(self, name: str) -> Callable[..., Any]:
        def hook(part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
            place = self._place(name, part)

            def watched(tensor: Tensor) -> Tensor:
                # An own view for each module: the gradient of a tensor that several read is that of all together.
                view = tensor.view_as(tensor)
                view.register_hook(lambda gradient: self._note_input_gradient(place, gradient))
                return view

            def activations(value: Any) -> Iterator[Tensor]:
                return (tensor for tensor in tensors_in(value) if tensor.requires_grad)

            # What carries a gradient is an activation. A mask carries none, and may contain -inf on purpose.
            chosen = [*activations(arguments), *activations(named)] or list(tensors_in(arguments))
            place.input = _merged(place.input, chosen)
            return _mapped(arguments, watched), _mapped(named, watched)

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(part: nn.Module, _arguments: Any, output: Any) -> None:
            place = self._place(name, part)
            found = list(tensors_in(output))
            place.output = _merged(place.output, found)
            if place.output is not None:
                # A module of ids has no float that goes in, and then what it makes is its own.
                self.forward.note(place, place.input or Numbers(0.0), place.output)
            for tensor in found:
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._note_output_gradient(place, gradient))

        return hook

    def _note_output_gradient(self, place: Place, gradient: Tensor) -> None:
        place.output_gradient = _merged(place.output_gradient, [gradient])
        if place.output_gradient is not None:
            self.backward.note(place, None, place.output_gradient)

    def _note_input_gradient(self, place: Place, gradient: Tensor) -> None:
        place.input_gradient = _merged(place.input_gradient, [gradient])
        if place.input_gradient is not None:
            self.backward.note(place, place.output_gradient, place.input_gradient)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the float tensors in a module's arguments or output, at any depth.

    Args:
        value: a tensor, or a container or record of them; anything else yields nothing.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_in(getattr(value, entry.name))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return plain containers with their float tensors that need a gradient changed; other objects stay."""
    if isinstance(value, Tensor):
        return change(value) if value.requires_grad and value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(_mapped(part, change) for part in value)
    return {key: _mapped(part, change) for key, part in value.items()} if type(value) is dict else value


def _merged(before: Numbers | None, tensors: list[Tensor]) -> Numbers | None:
    for tensor in tensors:
        if tensor.numel():
            before = numbers_of(tensor).merged(before)
    return before


@torch.no_grad()
def numbers_of(tensor: Tensor) -> Numbers:
    """Return the largest number of a tensor, and whether it contains NaN or infinity.

    Args:
        tensor: any shape, float, at least one entry.
    """
    values = tensor.detach()
    finite = torch.isfinite(values)
    largest = float(torch.where(finite, values, torch.zeros_like(values)).abs().max())
    if bool(finite.all()):
        return Numbers(largest)
    return Numbers(largest, "NaN" if bool(values.isnan().any()) else "inf")
