"""The parts of a reward in the log: the mean of each over the episodes of all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor

from ippo_lightning.distributed.collectives import all_reduce_max, all_reduce_sum
from ippo_lightning.errors import UserError

GROUP = "rollout/reward"


def part_metrics(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Return `rollout/reward/<name>` for each part: its mean over the episodes of all ranks where it is finite.

    Args:
        parts: of this rank, shape [rows] each; all ranks have the same names. Empty for a reward without parts.

    Raises:
        UserError: the ranks have parts of different names.
    """
    names = sorted(parts)
    # Also without parts: another rank may have some, and would wait for this one in its sums.
    _require_same_names(names)
    if not names:
        return {}
    finite = {name: parts[name][torch.isfinite(parts[name])].double() for name in names}
    # Sums of all ranks, and then one division: ranks may have different numbers of episodes.
    sums = torch.stack([torch.stack([values.sum(), values.new_tensor(len(values))]) for values in finite.values()])
    totals = all_reduce_sum(sums).tolist()
    return {f"{GROUP}/{name}": total / count for name, (total, count) in zip(names, totals, strict=True) if count > 0}


def _require_same_names(names: list[str]) -> None:
    digest, device = int.from_bytes(sha256("\n".join(names).encode()).digest()[:7], "big"), torch.device("cpu")
    # The largest and the smallest of all ranks, so that all ranks stop together.
    if all_reduce_max(digest, device=device) != -all_reduce_max(-digest, device=device):
        raise UserError(
            f"model.reward: parts {', '.join(names) or '(none)'} on this rank, and others on another; return the same "
            "names always"
        )
