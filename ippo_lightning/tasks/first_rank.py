"""Whether this process may write to the log for all ranks."""

from __future__ import annotations

import os


def is_first_rank() -> bool:
    """Return whether this process may write to the log for all ranks."""
    # tasks do not import torch, so the variables of the launchers tell (torchrun, Slurm, Lightning's own)
    variables = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((os.environ[name] for name in variables if name in os.environ), "0") == "0"
