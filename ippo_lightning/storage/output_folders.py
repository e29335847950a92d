"""Where a report, an evaluation or a comparison may write: not among the files of a run or of a model."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile

from ippo_lightning.errors import UserError
from ippo_lightning.storage.run_folder import (
    BUFFERS,
    CHECKPOINTS,
    COMPLETIONS,
    CONFIG,
    CSV,
    FRAMES,
    MODEL,
    NONFINITE,
    RESULTS,
    RunFolder,
)

_OF_A_RUN = (CHECKPOINTS, MODEL, CSV, COMPLETIONS, FRAMES, NONFINITE, BUFFERS)
_BESIDE_A_MODEL = ("*.safetensors", "*.bin", "tokenizer*.json")


def refuse_run_folder(field: str, folder: Path) -> None:
    """Refuse a folder in which a report, an evaluation or a comparison would write over what a run wrote.

    Args:
        field: the setting that names the folder.
        folder: it may be missing.

    Raises:
        UserError: a run wrote files there, or see `refuse_model_folder`.
    """
    refuse_model_folder(field, folder)
    run = RunFolder(folder)
    # Reports and comparisons have a `results.json` too, with all methods; it says nothing of a run.
    if run.has_run_beside(RESULTS) or ((folder / RESULTS).exists() and not _is_of_report(folder / RESULTS)):
        raise UserError(f"{field}: {folder} is the folder of a run, whose files would be replaced; name another folder")


def refuse_model_folder(field: str, folder: Path) -> None:
    """Refuse a folder that others load a model from, and what a run keeps to itself: its model, checkpoints and logs.

    Args:
        field: the setting that names the folder.
        folder: it may be missing.

    Raises:
        UserError: it is one of these.
    """
    if _is_of_model(folder):
        raise UserError(f"{field}: {folder} is the folder of a model; name another folder")
    place = folder.resolve()
    for above in place.parents:
        is_own = place.relative_to(above).parts[0] in _OF_A_RUN
        # A file of this name alone may be anything.
        if is_own and (above / CONFIG).is_file() and RunFolder(above).has_run_beside(CONFIG):
            raise UserError(f"{field}: {folder} is a part of the run in {above}; name another folder")


def make_writable(field: str, folder: Path) -> None:
    """Make a folder, and refuse one that nothing can be written into: before hours of work, and not after them.

    Args:
        field: the setting that names the folder.
        folder: it may be missing.

    Raises:
        UserError: nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _not_writable(field, folder, error) from error


def require_writable(field: str, folder: Path) -> None:
    """Refuse a folder that nothing could be written into, and leave nothing there: other checks may still follow.

    Args:
        field: the setting that names the folder.
        folder: it may be missing; then the nearest folder above it counts.

    Raises:
        UserError: nothing can be written into it.
    """
    place = folder.absolute()
    try:
        nearest = next(path for path in (place, *place.parents) if path.exists())
        TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise _not_writable(field, folder, error) from error


def _not_writable(field: str, folder: Path, error: OSError) -> UserError:
    return UserError(f"{field}: {folder} cannot be written into ({error.strerror}); name another folder with --{field}")


def _is_of_model(folder: Path) -> bool:
    is_model = (folder / "config.json").is_file() and any(any(folder.glob(name)) for name in _BESIDE_A_MODEL)
    return is_model or (folder / "adapter_config.json").is_file()


def _is_of_report(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # Cut off by a kill; a run writes this file completely or not at all.
        return True
    return isinstance(found, dict) and isinstance(found.get("methods"), dict)
