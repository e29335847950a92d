"""One PPO iteration as numbered stages. Knows nothing of influence: plain PPO is this code with no callbacks."""

from ippo_lightning.engine.hooks import call_hook
from ippo_lightning.engine.iteration import PPOStages, run_iteration
from ippo_lightning.engine.random_streams import random_states, restore_random_states, seed_training
from ippo_lightning.engine.settings import PPOSettings
from ippo_lightning.engine.update import run_update

__all__ = [
    "PPOSettings",
    "PPOStages",
    "call_hook",
    "random_states",
    "restore_random_states",
    "run_iteration",
    "run_update",
    "seed_training",
]
