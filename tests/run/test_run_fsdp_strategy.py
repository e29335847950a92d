"""How long the ranks of a strategy wait for one another."""

from __future__ import annotations

from datetime import timedelta

import pytest
from lightning.fabric.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from ippo_lightning.run.fsdp_strategy import ShardedStrategy, limit_waiting


@pytest.mark.parametrize("kind", [DDPStrategy, FSDPStrategy, ShardedStrategy])
def test_the_collectives_of_several_ranks_wait_as_long_as_they_may(kind: type) -> None:
    strategy = kind()
    limit_waiting(strategy, seconds=7.5)
    assert strategy._timeout == timedelta(seconds=7.5)


def test_a_strategy_of_one_process_does_not_change() -> None:
    strategy = SingleDeviceStrategy()
    before = vars(strategy).copy()
    limit_waiting(strategy, seconds=7.5)
    assert vars(strategy) == before
