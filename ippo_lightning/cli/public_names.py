"""Names that mean something on another machine, for a page that others read: no folders of this one, no secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

HIDDEN = "<hidden>"
_PACKAGED = re.compile(r"^.*[/\\]ippo_lightning[/\\]experiments[/\\]")
_HUB_CACHE = re.compile(r"[/\\]models--([\w.-]+?)--([\w.-]+?)(?=[/\\]|$)")
_WINDOWS = re.compile(r"^([A-Za-z]:[/\\]|\\\\)")
_POSIX = re.compile(r"^(/[^/\s]|~[\w.-]*/|~$)")
_SEED = re.compile(r"seed_\d+")
_RUNS = "runs"
# Two parts at least, and nothing before it that makes it a fraction, a URL, a closing tag or a relative path.
_INSIDE = re.compile(r"(?<![\w./\\<~*+)\]}%-])(?:file://)?(?:~[\w.-]*(?:/[\w.@+-]+)+|(?:/[\w.@+-]+){2,}/?)")
_INSIDE_WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:\\[\w.@+-]+(?:\\[\w.@+-]+)*")
_SECRET_KEY = re.compile(r"(^|_)(api_?key|password|passwd|secret|credentials?|(auth|access|hf)_?token)$|^token$", re.I)
_SECRET = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,})\b")
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


def public_name(name: str) -> str:
    """Return a path without the folders of this machine; another text, such as a Hub id, as it is.

    An absolute path of this library's package begins with `experiments`, one below a folder `runs` with `runs`, one in
    the cache of the Hub is the id, and of another only the last part is left. A relative path stays.

    Args:
        name: a path or a name.

    Example:
        >>> public_name("/home/ann/work/runs/gsm8k/sft"), public_name("/data/Llama-3-8B"), public_name("owner/name")
        ('runs/gsm8k/sft', 'Llama-3-8B', 'owner/name')
    """
    name = name.removeprefix("file://")
    if not _is_absolute(name):
        return name
    if _PACKAGED.match(name):
        return _PACKAGED.sub("experiments/", name).replace("\\", "/")
    found = _HUB_CACHE.search(name)
    if found:
        return f"{found[1]}/{found[2]}"
    path: PurePath = PureWindowsPath(name) if _WINDOWS.match(name) else PurePosixPath(name)
    parts = path.parts[1:]
    if _RUNS in parts[:-1]:
        return "/".join(parts[len(parts) - 1 - parts[::-1].index(_RUNS) :])
    if len(parts) > 1 and _SEED.fullmatch(parts[-1]):  # a run of a comparison, METHOD/seed_1
        return "/".join(parts[-2:])
    # Of a home directory alone, even the last part is a name of somebody.
    return parts[-1] if parts and parts[-2:-1] not in (("home",), ("Users",)) else HIDDEN


def public_value(value: Any) -> Any:
    """Return a configuration for others: paths as `public_name` gives them, and no passwords or keys of services.

    Args:
        value: of a YAML, at any depth.
    """
    if isinstance(value, Mapping):
        return {
            public_value(key): HIDDEN if value[key] and _SECRET_KEY.search(str(key)) else public_value(value[key])
            for key in value
        }
    if isinstance(value, (list, tuple)):
        return [public_value(item) for item in value]
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """Return a text in which each absolute path is what `public_name` makes of it.

    Args:
        text: a path, or any text with paths in it.
    """
    if _is_absolute(text) and len(text.split()) == 1:  # one with a space is found inside, below
        return public_name(text)
    for pattern in (_INSIDE, _INSIDE_WINDOWS):
        text = pattern.sub(lambda found: public_name(found[0]), text)
    return _LOGIN.sub("", _SECRET.sub(HIDDEN, text))


def _is_absolute(name: str) -> bool:
    return _POSIX.match(name) is not None or _WINDOWS.match(name) is not None
