"""Start vLLM's engine, one per rank on the rank's own device, and name what ends it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ippo_lightning.distributed.collectives import world_size
from ippo_lightning.errors import UserError

_PATIENCE = 1.0
"""Seconds between two looks at the engine's processes."""


class Engine:
    """A `vllm.LLM` and the processes that it has started.

    Args:
        llm: the engine.
        processes: direct children of this process; empty if vLLM runs inside this one.
    """

    def __init__(self, llm: Any, processes: Sequence[BaseProcess]) -> None:
        self.llm = llm
        self.processes = list(processes)

    def generate(self, *args: object, **kwargs: object) -> Any:
        """Return what `vllm.LLM.generate` returns; it notices by itself that its processes have ended."""
        return self.llm.generate(*args, **kwargs)

    def collective_rpc(self, method: str, *, kwargs: Mapping[str, object]) -> None:
        """Call a method of all workers.

        Raises:
            ConnectionError: a process of the engine has ended.
        """
        failures: list[Exception] = []

        def call() -> None:
            try:
                self.llm.collective_rpc(method, kwargs=kwargs)
            except Exception as error:
                failures.append(error)

        # vLLM 0.32 waits here for ever for an answer of a process that has ended, so another thread waits in its place.
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_PATIENCE)
            if thread.is_alive() and not all(process.is_alive() for process in self.processes):
                raise ConnectionError(f"its process ended during {method}")
        if failures:
            raise failures[0]


def started(arguments: Mapping[str, object], *, device: torch.device) -> tuple[Any, Engine]:
    """Return the module vllm and a new engine; vLLM is imported here, because it is not always installed.

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
        before = set(multiprocessing.active_children())
        with _only_visible(device):
            llm = vllm.LLM(**arguments)
        return vllm, Engine(llm, [child for child in multiprocessing.active_children() if child not in before])
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
