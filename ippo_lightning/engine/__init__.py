"""One iteration as numbered stages. It knows nothing of influence: plain PPO is this code without callbacks."""

from ippo_lightning.engine.dynamic_sampling import DynamicSampling
from ippo_lightning.engine.hooks import call_hook
from ippo_lightning.engine.iteration import IterationStages, run_iteration
from ippo_lightning.engine.pilot_commit import PilotCommit
from ippo_lightning.engine.random_streams import global_seed, random_states, restore_random_states, seed_training
from ippo_lightning.engine.settings import UpdateSettings
from ippo_lightning.engine.update import run_update

__all__ = [
    "DynamicSampling",
    "IterationStages",
    "PilotCommit",
    "UpdateSettings",
    "call_hook",
    "global_seed",
    "random_states",
    "restore_random_states",
    "run_iteration",
    "run_update",
    "seed_training",
]
