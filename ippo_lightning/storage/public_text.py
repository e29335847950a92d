"""A command as it may be shown to others: without the user's name, folders of a home, and secrets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_HOMES = re.compile(r"(?<![\w.])/(?:home|Users)/[^/\s'\"]+|(?<![\w.])/root(?=[/\s'\"]|$)")
_SECRET = re.compile(r"(?:^|[._-])(?:api_?key|secret|password|(?:(?:access|auth|hf)_)?token)$", re.IGNORECASE)
_HIDDEN = "***"


def public_command(words: Sequence[str]) -> str:
    """Return a command as one line for a shell.

    A path below the working folder becomes relative, the home of any user becomes `~`, and the value of an option whose
    name ends in `api_key`, `secret`, `password` or `token` becomes `***`.

    Args:
        words: as the user typed them.

    Example:
        >>> public_command(["ippo", "fit", "--config", "/home/ada/my run.yaml", "--logger.api_key=x1"])
        "ippo fit --config '~/my run.yaml' --logger.api_key=***"
    """
    shown: list[str] = []
    hides_next = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_secret = name.startswith("--") and _SECRET.search(name) is not None
        if hides_next or (is_secret and equals):
            shown.append(_HIDDEN if hides_next else f"{name}={_HIDDEN}")
        else:
            shown.append(shlex.quote(without_homes(word)))
        hides_next = is_secret and not equals
    return " ".join(shown)


def without_homes(text: str) -> str:
    """Return a text whose paths tell nothing of the user: relative to the working folder, or from `~` on.

    Args:
        text: a path, or anything that may contain one.

    Example:
        >>> without_homes("--loop.run_dir=/Users/ada/runs/one")
        '--loop.run_dir=~/runs/one'
    """
    here = str(Path.cwd())
    if here != "/":  # every absolute path would lose its first character
        text = re.sub(rf"(?<![\w./-]){re.escape(here)}(?:/|(?=['\"\s]|$))", "", text) or "."
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without a home
        home = "/"
    if home != "/":
        text = re.sub(rf"(?<![\w./-]){re.escape(home)}(?=[/'\"\s]|$)", "~", text)
    return _HOMES.sub("~", text)
