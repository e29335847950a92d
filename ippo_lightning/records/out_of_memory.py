"""Which errors mean that a device's memory did not suffice."""

from __future__ import annotations

import torch

# torch has a class only for its own allocator. CPUs, CUDA's libraries and its driver report the same in their words.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


MEMORY_ERRORS = (RuntimeError, MemoryError)
"""What to catch around a pass, before `is_out_of_memory` decides: Python's own error is no RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, so that a smaller pass may succeed.

    Args:
        error: any; usually a RuntimeError.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
