"""What may change the last bits of a result: versions, threads, the processor."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "lightning")
_OF_ENVIRONMENTS = {
    "gymnasium": ("gymnasium",),
    "minigrid": ("minigrid",),
    "highway_env": ("highway-env",),
    "Box2D": ("box2d", "box2d-py"),
    "stable_baselines3": ("stable-baselines3",),
}
"""Module to the packages that contain it. Only a module that is imported counts: a run of texts uses none of them."""


def environment() -> dict[str, str]:
    """Return what may change the last bits of a result: versions, threads, kind of processor."""
    found = {name: _version(name) for name in _PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {
        "Python": platform.python_version(),
        **{name: version for name, version in found.items() if version},
        "threads": str(torch.get_num_threads()),
        "processor": device,
    }


def origin(command: str) -> dict[str, Any]:
    """Return with what a run begins: its command, versions and kind of machine; nothing that names a user or a host.

    Args:
        command: see `public_command`; empty for a run of a Python program.
    """
    versions = {"python": platform.python_version(), "ippo-lightning": _version("ippo-lightning")}
    versions |= {name: _version(name) for name in (*_PACKAGES, *_environment_packages())}
    gpus = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    machine = [platform.machine(), f"{os.cpu_count()} cores", *(f"{count} x {name}" for name, count in gpus.items())]
    return {
        "command": command,
        "versions": {name: version for name, version in versions.items() if version},
        "machine": ", ".join(machine),
    }


def _environment_packages() -> list[str]:
    return [name for module, names in _OF_ENVIRONMENTS.items() if module in sys.modules for name in names]


def warn_of_environment(saved: Mapping[str, str] | None) -> None:
    """Warn in one line if the environment is not that of the checkpoint.

    Args:
        saved: of the checkpoint; None if it does not tell.

    Warns:
        UserWarning: something differs.
    """
    mine = environment()
    names = [name for name in {**(saved or {}), **mine} if (saved or mine).get(name) != mine.get(name)]
    if names:
        changes = ", ".join(f"{name} {(saved or {}).get(name, 'none')} -> {mine.get(name, 'none')}" for name in names)
        warnings.warn(f"resume: the last bits of the results may change, because of {changes}", stacklevel=2)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
