"""Records as tensors and plain values, which `torch.load(weights_only=True)` accepts, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError


def plain(value: object, known: Mapping[str, Any]) -> Any:
    """Return a value as tensors on the CPU and plain values; what has no such form becomes None.

    Args:
        value: a record, tensor, number, text, or a container of them.
        known: classes of records by name.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value).__name__ in known:
        return {
            "record": type(value).__name__,
            "fields": {name: plain(part, known) for name, part in _parts(value).items()},
        }
    if isinstance(value, Mapping):
        return {str(key): plain(part, known) for key, part in value.items()}
    return [plain(part, known) for part in value] if isinstance(value, (list, tuple)) else None


def rebuilt(value: Any, device: torch.device, known: Mapping[str, Any], *, source: str) -> Any:
    """Return what `plain` was given.

    Args:
        value: from a file.
        device: of the tensors.
        known: classes of records by name; any other name is data, not code.
        source: names the file in errors.

    Raises:
        UserError: a record is unknown, or its fields do not fit.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict) and set(value) == {"record", "fields"}:
        if not isinstance(value["record"], str) or not isinstance(value["fields"], dict):
            raise UserError(f"{source}: a record has no name or no fields")
        if value["record"] not in known:
            raise UserError(f"{source}: {value['record']!r} is unknown; expected one of {', '.join(known)}")
        parts = {str(name): rebuilt(part, device, known, source=source) for name, part in value["fields"].items()}
        try:
            return known[value["record"]](**parts)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"{source}: the fields of {value['record']} are wrong ({error})") from error
    if isinstance(value, dict):
        return {key: rebuilt(part, device, known, source=source) for key, part in value.items()}
    # The columns of a record that are no tensors are tuples.
    if isinstance(value, list):
        return tuple(rebuilt(part, device, known, source=source) for part in value)
    return value


def _parts(record: Any) -> dict[str, Any]:
    if is_dataclass(record):
        return {entry.name: getattr(record, entry.name) for entry in fields(record)}
    names = getattr(record, "_fields", None) or type(record).__slots__  # a named tuple, or a plain class
    return {name: getattr(record, name) for name in names}
