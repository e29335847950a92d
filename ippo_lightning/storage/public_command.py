"""A command as others may read it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from ippo_lightning.storage.public_text import below_home, is_prose, public_text
from ippo_lightning.storage.public_yaml import public_value, public_yaml
from ippo_lightning.storage.secret_forms import is_secret_key


def public_command(words: Sequence[str]) -> str:
    """Return a command as one line for a shell, with each value as `public_value` gives it.

    A path below the user's home begins with `~`, so that the command finds it when it is pasted.

    Args:
        words: as the user typed them.

    Example:
        >>> public_command(["ippo", "fit", "--config", "/scratch/ada/my run.yaml", "--logger.api_key=x1"])
        "ippo fit --config 'my run.yaml' --logger.api_key='<hidden>'"
    """
    shown: list[str] = []
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            shown.append(_option(name, _argument(value, key=_key_of(name))))
        elif word.startswith("--"):
            shown.append(shlex.quote(word))
        elif equals and not option and re.fullmatch(r"[\w.-]+", name):
            shown.append(_option(name, _argument(value, key=_key_of(name))))
        else:
            # a word without an option is the folder of a run, or a file
            shown.append(_argument(word, key=_key_of(option) if option else "path"))
        option = word if word.startswith("--") and not equals else ""
    return " ".join(shown)


def public_command_line(line: str) -> str:
    """Return a command that some run has recorded as `public_command` gives it; as it is if nothing is private.

    Args:
        line: a command for a shell, of any origin.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # cut off inside a quotation
        return public_text(line)
    shown = public_command(words)
    return line if shlex.split(shown) == words else shown


def _key_of(option: str) -> str:
    return option.lstrip("-").rstrip("+").rsplit(".", 1)[-1]


def _option(name: str, argument: str) -> str:
    if argument == "''":
        return f"{shlex.quote(name)}="
    # no shell expands the `~` of `--config=~/x`, and each of `--config ~/x`
    return f"{shlex.quote(name)}{' ' if name.startswith('--') and argument.startswith('~') else '='}{argument}"


def _argument(value: str, *, key: str) -> str:
    if not value:
        return "''"
    if value[0] in "[{" and not is_prose(key) and not is_secret_key(key):
        return shlex.quote(public_yaml(value))
    below = below_home(value, key=key)
    if below is None:
        return shlex.quote(public_value(value, key=key))
    return f"~/{shlex.quote(below)}" if below else "~"
