"""A model that is named almost as one of this package, told before the imports that loading needs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ippo_lightning.cli.experiment_paths import FOLDERS, ROOT, axis_names
from ippo_lightning.errors import UserError

_KEYS = ("model", "init_args", "policy", "init_args", "pretrained")


def check_pretrained(settings: Mapping[str, Any]) -> None:
    """Refuse a `pretrained` that is no folder, cannot be a Hub id, and is near to the name of a packaged model.

    Args:
        settings: of an experiment, nested.

    Raises:
        UserError: the name is certainly meant for the model axis.
    """
    name: Any = settings
    for key in _KEYS:
        name = name.get(key) if isinstance(name, Mapping) else None
    if not isinstance(name, str) or not name or Path(name).exists():
        return
    word = name.removeprefix(f"{ROOT}/{FOLDERS['model']}/")
    # the few Hub ids without an owner, such as gpt2, resemble none of these
    near = difflib.get_close_matches(word, axis_names("model"), n=1, cutoff=0.8) if "/" not in word else []
    if near:
        raise UserError(
            f"model.policy.pretrained: '{name}' is no folder and no Hub id such as Qwen/Qwen3-0.6B; "
            f"did you mean --model {near[0]}?"
        )
