"""Numbers that tell data of other content apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def batch_digest(batch: object) -> int:
    """Return a number that tells batches of other content apart, the same in every process; never 0.

    Args:
        batch: texts, numbers and tensors in dictionaries and lists; of anything else only the type counts.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Mapping):
            add([*value.keys(), *value.values()])
        elif isinstance(value, (list, tuple)):
            digest.update(f"{len(value)}[".encode())
            for entry in value:
                add(entry)
        elif isinstance(value, Tensor):
            content = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            # As bytes, because NumPy has no bfloat16.
            digest.update(content.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, (str, bytes, bool, int, float, type(None))):
            digest.update(f"{value!r},".encode("utf-8", errors="surrogatepass"))
        else:  # its text may contain its address in memory
            digest.update(type(value).__qualname__.encode())

    add(batch)
    return int.from_bytes(digest.digest()[:7], "big") | 1
