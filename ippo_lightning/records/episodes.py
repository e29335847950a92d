"""The base of all episodes: a record whose fields know their axes, so that each operation is written once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ippo_lightning.errors import UserError

# typing.Self comes with Python 3.11 only.
_Self = TypeVar("_Self", bound="Episodes")


@dataclass(frozen=True, slots=True)
class Column:
    """The layout of one tensor field of a record. The first axis is always the rows."""

    axis: str | None = None
    """Name of the second axis, `steps` for instance; None for a field of shape [rows]."""
    pad: Literal["left", "right"] = "right"
    """The side on which the second axis is padded."""
    fill: float | bool = 0
    """What padding contains."""
    has_features: bool = False
    """Whether more axes may follow the second one."""


# `Any`, as the stubs of `dataclasses.field`: a class body assigns the result to a field that is annotated as a Tensor.
def row_column() -> Any:
    """Return a dataclass field of shape [rows]."""
    return field(metadata={"column": Column()})


def step_column(*, fill: float | bool = 0, has_features: bool = False) -> Any:
    """Return a dataclass field of shape [rows, steps], padded on the right.

    Args:
        fill: what padding contains.
        has_features: whether more axes may follow, as in observations [rows, steps, *features].
    """
    return field(metadata={"column": Column("steps", fill=fill, has_features=has_features)})


def column(axis: str, *, pad: Literal["left", "right"]) -> Any:
    """Return a dataclass field of shape [rows, axis] with padding of zeros on one side."""
    return field(metadata={"column": Column(axis, pad=pad)})


def object_column() -> Any:
    """Return a dataclass field that is a tuple of one Python object per row."""
    return field(metadata={"objects": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """What the policy did in one rollout, with each number that PPO needs about it.

    One row is what is scored, weighted and dropped: a response of a language model, or one transition of an
    environment. A field that a later stage fills is NaN until then, so that an early use shows.

    The mask may have holes: in a dialogue with tools, the tokens of a tool stand between those of the policy.
    """

    mask: Tensor = step_column(fill=False)
    """[rows, steps] bool, True on the policy's own actions, the only steps that count."""
    log_probs: Tensor = step_column()
    """[rows, steps] nats, of the policy that sampled, at the temperature of sampling; 0.0 where the mask is False."""
    ref_log_probs: Tensor = step_column()
    """[rows, steps] nats, of the frozen reference; 0.0 where the mask is False."""
    values: Tensor = step_column()
    """[rows, steps] the critic's estimate before each step; 0.0 where the mask is False."""
    rewards: Tensor = step_column()
    """[rows, steps] outcome on the last step, KL penalty on each step; 0.0 where the mask is False."""
    advantages: Tensor = step_column()
    """[rows, steps] 0.0 where the mask is False."""
    returns: Tensor = step_column()
    """[rows, steps] regression targets of the critic; 0.0 where the mask is False."""
    outcome_rewards: Tensor = row_column()
    """[rows] the number of the grader, reward model or environment."""
    truncated: Tensor = row_column()
    """[rows] bool, True where a limit cut the episode before its end."""
    group: Tensor = row_column()
    """[rows] int64, equal for the responses to one prompt, or for the steps of one environment."""

    row_name: ClassVar[str] = "episode"
    """What messages call a row."""
    mask_of_axis: ClassVar[Mapping[str, str]] = {"steps": "mask"}
    """Axis to the field that tells which of its columns are padding in every row."""

    def __post_init__(self) -> None:
        # A field of another shape might broadcast, or index other rows, and the numbers would still look right.
        widths = {axis: getattr(self, name).shape[1] for axis, name in self.mask_of_axis.items()}
        rows = len(self)
        for name, layout in self.columns().items():
            shape = getattr(self, name).shape
            expected = (rows,) if layout.axis is None else (rows, widths[layout.axis])
            if (shape[:2] if layout.has_features else shape) != expected:
                raise ValueError(f"{type(self).__name__}.{name} has shape {tuple(shape)}, expected {expected}")
        for name in self.object_columns():
            if len(getattr(self, name)) != len(self):
                found = len(getattr(self, name))
                raise ValueError(f"{type(self).__name__}.{name} has {found} entries for {len(self)} rows")

    @classmethod
    def columns(cls) -> dict[str, Column]:
        """Return the layout of each tensor field, by name."""
        return _columns_of(cls)

    @classmethod
    def object_columns(cls) -> tuple[str, ...]:
        """Return the names of the fields that are tuples of one object per row."""
        if cls not in _OBJECT_COLUMNS:
            _OBJECT_COLUMNS[cls] = tuple(entry.name for entry in fields(cls) if entry.metadata.get("objects"))
        return _OBJECT_COLUMNS[cls]

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.mask.device

    @property
    def lengths(self) -> Tensor:
        """[rows] int64, how many steps of each row count."""
        return self.mask.sum(dim=1)

    @property
    def spans(self) -> Tensor:
        """[rows] int64, steps of each row up to its last one that counts, holes included."""
        # A row of one step has no hole, as a transition; and amax of no columns is an error.
        if self.mask.shape[1] <= 1:
            return self.lengths
        steps = torch.arange(1, self.mask.shape[1] + 1, device=self.device)
        return (self.mask * steps).amax(dim=1)

    @property
    def num_steps(self) -> int:
        """How many steps of all rows count."""
        return int(self.mask.sum())

    def cost(self) -> Tensor:
        """Return what each row takes of a pass through the policy, in steps (tokens), shape [rows], int64."""
        # With its holes: a forward runs over each position up to the last one that counts.
        return self.spans

    def describe(self, row: int) -> str:
        """Return a few words that let a person find a row again, for messages."""
        return f"group {int(self.group[row])}"

    def for_update(self: _Self) -> _Self:
        """Return the same episodes without the objects that no update reads, to send them to another rank."""
        return self

    def evolve(self: _Self, **changes: Any) -> _Self:
        """Return a copy with some fields replaced; the record itself never changes."""
        return replace(self, **changes)

    def select(self: _Self, index: Tensor | Sequence[int]) -> _Self:
        """Return the rows at `index`, with all fields cut alike and without columns that are padding in each row.

        Args:
            index: positions of the rows, shape [chosen], int64; may be empty, may repeat.

        Raises:
            UserError: a mask in place of positions, which would pick the first two rows again and again.
        """
        index = torch.as_tensor(index, device=self.device)
        if index.dtype == torch.bool:
            raise UserError(f"episodes.select: index is a mask {list(index.shape)}; expected positions")
        # An empty list becomes a float tensor, which cannot be an index.
        index = index.long()
        # Each minibatch is selected, and this call is faster than brackets.
        chosen: dict[str, object] = {name: getattr(self, name).index_select(0, index) for name in self.columns()}
        if self.object_columns():
            rows = index.tolist()
            chosen |= {name: tuple(getattr(self, name)[row] for row in rows) for name in self.object_columns()}
        # A minibatch of short rows does not pay for the longest row of the rollout.
        return self.evolve(**chosen).trimmed()

    def trimmed(self: _Self) -> _Self:
        """Return the same rows without columns that are padding in every row; at least one column stays."""
        changes: dict[str, Tensor] = {}
        found: dict[tuple[str, str], int] = {}  # once per axis, because each minibatch is trimmed
        for name, layout in self.columns().items():
            if layout.axis is not None:
                place = layout.axis, layout.pad
                if place not in found:
                    found[place] = self._used_columns(*place)
                used, tensor = found[place], getattr(self, name)
                if tensor.shape[1] > used:
                    # `used` is at least 1: a slice from -0 would keep all columns.
                    changes[name] = tensor[:, -used:] if layout.pad == "left" else tensor[:, :used]
        return self.evolve(**changes) if changes else self

    def _used_columns(self, axis: str, pad: str) -> int:
        """Return how many columns of an axis lie between its unpadded end and the last one in use."""
        mask: Tensor = getattr(self, self.mask_of_axis[axis])
        if mask.shape[1] <= 1:  # a transition
            return 1
        in_use = mask.any(dim=0).nonzero().flatten()
        # One column stays, because many operations (a maximum, a forward) fail on an axis of size 0.
        if not len(in_use):
            return 1
        return mask.shape[1] - int(in_use[0]) if pad == "left" else int(in_use[-1]) + 1

    def widened(self: _Self, widths: Mapping[str, int]) -> _Self:
        """Return the same rows with padding added up to a width.

        Args:
            widths: axis to its number of columns, at least as many as there are.
        """
        changes: dict[str, Tensor] = {}
        for name, layout in self.columns().items():
            if layout.axis is not None:
                changes[name] = _padded(getattr(self, name), layout, widths[layout.axis])
        return self.evolve(**changes)

    def to(self: _Self, device: torch.device | str) -> _Self:
        """Return a copy whose tensors lie on `device`."""
        return self.evolve(**{name: getattr(self, name).to(device) for name in self.columns()})

    @classmethod
    def concat(cls: type[_Self], parts: Sequence[_Self]) -> _Self:
        """Join several records into one, with padding up to common widths.

        Args:
            parts: at least one record, all of one class.
        """
        widths = {axis: max(getattr(part, name).shape[1] for part in parts) for axis, name in cls.mask_of_axis.items()}
        wide = [part.widened(widths) for part in parts]
        joined: dict[str, object] = {name: torch.cat([getattr(part, name) for part in wide]) for name in cls.columns()}
        joined |= {
            name: tuple(entry for part in parts for entry in getattr(part, name)) for name in cls.object_columns()
        }
        return parts[0].evolve(**joined)


_COLUMNS: dict[type, dict[str, Column]] = {}
_OBJECT_COLUMNS: dict[type, tuple[str, ...]] = {}


def _columns_of(record: type[Episodes]) -> dict[str, Column]:
    if record not in _COLUMNS:  # looked up in each `select`, so found once per class
        found = {entry.name: entry.metadata["column"] for entry in fields(record) if "column" in entry.metadata}
        _COLUMNS[record] = found
    return _COLUMNS[record]


def _padded(tensor: Tensor, layout: Column, width: int) -> Tensor:
    missing = width - tensor.shape[1]
    if missing == 0:
        return tensor
    padding = tensor.new_full((tensor.shape[0], missing, *tensor.shape[2:]), layout.fill)
    return torch.cat([padding, tensor] if layout.pad == "left" else [tensor, padding], dim=1)
