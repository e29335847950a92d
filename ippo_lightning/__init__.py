"""Post-train language models with Influence-Guided PPO on PyTorch Lightning and Fabric.

The names below are imported when they are first used, so that ``import ippo_lightning`` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ippo_lightning.errors import UserError
    from ippo_lightning.modules.control import ControlPPOModule
    from ippo_lightning.modules.ppo import PPOModule
    from ippo_lightning.modules.sft import SFTModule
    from ippo_lightning.records import Episodes, RolloutPlan, TextEpisodes, UpdatePlan, UpdateStats
    from ippo_lightning.run.fabric_loop import FabricLoop

__all__ = [
    "ControlPPOModule",
    "Episodes",
    "FabricLoop",
    "PPOModule",
    "RolloutPlan",
    "SFTModule",
    "TextEpisodes",
    "UpdatePlan",
    "UpdateStats",
    "UserError",
    "__version__",
]

try:
    __version__ = version("ippo-lightning")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "ControlPPOModule": "ippo_lightning.modules.control",
    "Episodes": "ippo_lightning.records",
    "FabricLoop": "ippo_lightning.run.fabric_loop",
    "PPOModule": "ippo_lightning.modules.ppo",
    "RolloutPlan": "ippo_lightning.records",
    "SFTModule": "ippo_lightning.modules.sft",
    "TextEpisodes": "ippo_lightning.records",
    "UpdatePlan": "ippo_lightning.records",
    "UpdateStats": "ippo_lightning.records",
    "UserError": "ippo_lightning.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use is an ordinary look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
