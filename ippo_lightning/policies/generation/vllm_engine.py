"""Start vLLM's engine, one per rank on the rank's own device, and name what ends it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ippo_lightning.distributed.collectives import world_size
from ippo_lightning.errors import UserError


def started(arguments: Mapping[str, object], *, device: torch.device) -> tuple[Any, Any]:
    """Return the module vllm and an engine; vLLM is imported here, because it is not always installed.

    Args:
        arguments: of `vllm.LLM`.
        device: of the policy; the engine takes the same one.

    Raises:
        UserError: vLLM is not installed, or does not start.
    """
    # Its workers report each setting as a warning; what is fatal still comes.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            "sampling.sampler: vllm is not installed; pip install 'ippo-lightning[vllm]' on a machine with a GPU, "
            "or use generate or continuous"
        ) from error
    try:
        with _only_visible(device):
            return vllm, vllm.LLM(**arguments)
    # The engine fails in many ways: no GPU, too little memory, an unknown architecture or option.
    except Exception as error:
        raise UserError(f"sampling.engine: vLLM does not start ({_reason(error)})") from error


@contextmanager
def naming_failures() -> Iterator[None]:
    """Turn an error of a running engine into one line.

    Raises:
        UserError: the engine refuses the request.
        ConnectionError: the engine has ended; that is no mistake in the settings, so it is no `UserError`.
    """
    try:
        yield
    # vLLM's check of prompts and parameters; the engine is still there.
    except (ValueError, TypeError) as error:
        raise UserError(f"sampling.engine: vLLM refuses the request ({_reason(error)})") from error
    except Exception as error:
        raise ConnectionError(
            f"sampling.sampler: vLLM's engine has ended ({type(error).__name__}: {_reason(error)}); start the "
            "run again with loop.resume: true"
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


@contextmanager
def _only_visible(device: torch.device) -> Iterator[None]:
    """Let the processes that start inside the block see one CUDA device only.

    An engine takes the first device it sees. With several ranks on a machine, that is the device of rank 0.

    Args:
        device: of this rank's policy.
    """
    if device.type != "cuda" or world_size() == 1:
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    index = torch.cuda.current_device() if device.index is None else device.index
    os.environ["CUDA_VISIBLE_DEVICES"] = before.split(",")[index] if before else str(index)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
