"""A loop that repeats rounds of a run, and never begins one: its run's folder does not change."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ippo_lightning.run.checkpoints import frozen_fingerprint, train_as_saved
from ippo_lightning.run.fabric_loop import FabricLoop


def set_up_rounds(loop: FabricLoop, trained: Mapping[str, Tensor]) -> None:
    """Launch, and prepare module, optimizer and evaluations as `fit` does.

    Args:
        loop: without callbacks.
        trained: the parameters that trained in the run, by name; all others are frozen.
    """
    loop._launch()
    loop._set_up_data("test")
    train_as_saved(loop.module, trained)
    loop.module.train()
    # Before any forward, see `frozen_fingerprint`.
    loop.fingerprint = frozen_fingerprint(loop.module)
    wrapper, loop._optimizer = loop._wrapped()
    wrapper.mark_forward_method(loop.module.loss_method)
    loop.module.attach(loop, wrapper=wrapper)
