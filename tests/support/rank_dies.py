"""Rank 1 dies or stops in the middle of a run; rank 0 must end, and say so.

python -m torch.distributed.run --nproc_per_node 2 rank_dies.py FOLDER SIGKILL|SIGSTOP
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from training_parts import tiny_loop, tiny_module

from ippo_lightning.distributed.collectives import is_lost_rank_error

TIMEOUT = 8.0
"""Seconds that a rank waits for one that is stopped."""


class Dies:
    """Sends rank 1 a signal in the third iteration."""

    state_key = "dies"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        if pl_module.iteration == 2 and trainer.fabric.global_rank == 1:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    folder = Path(sys.argv[1]) / "dies"
    numbers = {"max_iterations": 9, "rank_timeout": TIMEOUT}
    loop = tiny_loop(folder, tiny_module(), fabric=fabric, callbacks=[Dies()], **numbers)
    try:
        loop.fit()
    except RuntimeError as error:
        print(f"rank {fabric.global_rank} lost another: {is_lost_rank_error(error)}", flush=True)
        raise
