"""Files of tensors and plain values that anybody may have written: read without running code of the file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ippo_lightning.errors import UserError


def read_tensors(path: str | Path, *, name: str) -> Any:
    """Return the content of a file that `torch.save` wrote, its tensors on the CPU; no code of the file runs.

    Args:
        path: of the file.
        name: what the file is, for errors.

    Raises:
        UserError: the file does not exist, is damaged, or contains more than tensors and plain values.
    """
    try:
        _require_undamaged(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read ({error.strerror or error})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{name}: {path} cannot be read ({reason})") from error


def _require_undamaged(path: str | Path) -> None:
    """Compare the checksum of each part, which torch writes and does not read."""
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")
