"""Rank 1 dies in the middle of a run; rank 0 must end, and say so.

python -m torch.distributed.run --nproc_per_node 2 rank_dies.py FOLDER
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


class Dies:
    """Kills rank 1 in the third iteration."""

    state_key = "dies"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        if pl_module.iteration == 2 and trainer.fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    loop = tiny_loop(Path(sys.argv[1]) / "dies", tiny_module(), fabric=fabric, callbacks=[Dies()], max_iterations=9)
    try:
        loop.fit()
    except RuntimeError as error:
        print(f"rank {fabric.global_rank} lost another: {is_lost_rank_error(error)}", flush=True)
        raise
