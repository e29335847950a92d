"""What a user's function changes for the whole process is set back after the call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# How each setting is read and written. All later numbers of a run depend on them.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Set back, after the block, what it has changed: dtype and device by default, grad mode, threads, and the folder.

    Random numbers that the block draws stay drawn. If it seeds torch's stream, the stream continues as it was before:
    otherwise each iteration would sample with the same random numbers.
    """
    before = [read() for read, _ in _SETTINGS]
    device, seed, streams, folder = torch.get_default_device(), torch.initial_seed(), _streams(), _folder()
    try:
        yield
    finally:
        for (read, write), value in zip(_SETTINGS, before, strict=True):
            if read() != value:
                write(value)
        if torch.get_default_device() != device:
            # None removes the mode of torch that a default device is; `cpu` would leave a second one in force.
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.initial_seed() != seed:
            _continue(streams)
        if folder is not None and _folder() != folder:
            os.chdir(folder)  # the files of a run may have relative names


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted; the run goes on without one
        return None


def _streams() -> list[torch.Tensor]:
    # Reading the stream of a GPU would begin to use the GPU.
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _continue(streams: list[torch.Tensor]) -> None:
    torch.set_rng_state(streams[0])
    if streams[1:]:
        torch.cuda.set_rng_state_all(streams[1:])
