"""One PPO iteration as numbered stages. Knows nothing of influence: plain PPO is this code with no callbacks."""

from ippo_lightning.collectives import (
    all_reduce_max,
    all_reduce_sum,
    any_rank,
    gather_rows,
    rank,
    says_rank_was_lost,
    world_size,
)
from ippo_lightning.engine.hooks import call_hook
from ippo_lightning.engine.iteration import PPOStages, run_iteration
from ippo_lightning.engine.random_streams import random_states, restore_random_states, seed_training
from ippo_lightning.engine.settings import PPOSettings
from ippo_lightning.engine.update import run_update

__all__ = [
    "PPOSettings",
    "PPOStages",
    "all_reduce_max",
    "all_reduce_sum",
    "any_rank",
    "call_hook",
    "gather_rows",
    "random_states",
    "rank",
    "restore_random_states",
    "run_iteration",
    "run_update",
    "says_rank_was_lost",
    "seed_training",
    "world_size",
]
