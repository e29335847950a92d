"""The parts of a reward in the log: the mean of each over the episodes of all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_sum, world_size
from ippo_lightning.errors import UserError

GROUP = "rollout/reward"


def part_metrics(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Return `rollout/reward/<name>` for each part: its mean over the episodes of all ranks where it is finite.

    Args:
        parts: of this rank, shape [rows] each; all ranks have the same names. Empty for a reward without parts.

    Raises:
        UserError: the ranks have parts of different names.
    """
    if not parts:
        return {}
    names = sorted(parts)
    _require_same_names(names)
    finite = {name: parts[name][torch.isfinite(parts[name])].double() for name in names}
    # Sums of all ranks, and then one division: ranks may have different numbers of episodes.
    sums = torch.stack([torch.stack([values.sum(), values.new_tensor(len(values))]) for values in finite.values()])
    totals = all_reduce_sum(sums).tolist()
    return {f"{GROUP}/{name}": total / count for name, (total, count) in zip(names, totals, strict=True) if count > 0}


def _require_same_names(names: list[str]) -> None:
    # 40 bits, so that a sum over ranks is exact in double precision.
    digest = float(int.from_bytes(sha256("\n".join(names).encode()).digest()[:5], "big"))
    total = float(all_reduce_sum(torch.tensor([digest], dtype=torch.float64)))
    # On each rank alike only if all are equal; a rank that differs from the mean stops, and the others with it.
    if total != digest * world_size():
        raise UserError(
            f"model.reward: parts {', '.join(names)} on this rank, and others on another; return the same names always"
        )
