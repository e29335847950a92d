"""Names and texts as others may read them: no folders of this machine, no user, no secrets."""

from __future__ import annotations

import getpass
import os
import platform
import posixpath
import re
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from ippo_lightning.storage.secret_forms import HIDDEN, hidden_value, is_secret_key, without_secret_forms

_PACKAGED = re.compile(r"^.*[/\\]ippo_lightning[/\\]experiments[/\\]")
_HUB_CACHE = re.compile(r"[/\\](?:models|datasets)--([\w.-]+?)--([\w.-]+?)(?=[/\\]|$)")
_WINDOWS = re.compile(r"[A-Za-z]:[/\\]|\\\\[\w.-]{2,}\\")
# Not `Q:\nA:\n`, which a prompt in one line contains.
_WINDOWS_WHOLE = re.compile(
    r"(?:[A-Za-z]:[/\\](?![nrt]\\)|\\\\[\w.-]{2,}\\)[^/\\:*?\"<>|\n]+(?:[/\\][^/\\:*?\"<>|\n]+)+[/\\]?"
)
_FROM_HOME = re.compile(r"~(?:[A-Za-z_][\w.-]*)?/[^/]")
_NO_NAME = re.compile(r"[*?|<>\"^$\\{}\[\]\n]")
_SCHEME = re.compile(r"([A-Za-z][\w+.-]+):(/.*)", re.DOTALL)
_SEED = re.compile(r"seed_\d+")
_RUNS = "runs"
_HOMES = ("home", "Users", "users", "homes")
# Folders at the top of a file system. `/v1/score` is an address at a server, and a path only where a folder `/v1` is.
_TOPS = frozenset((
    "home", "homes", "Users", "users", "root", "export", "nfs", "scratch", "mnt", "media", "lustre", "gpfs", "beegfs",
    "data", "datasets", "srv", "opt", "tmp", "var", "usr", "work", "workspace", "workspaces", "project", "projects",
    "storage", "share", "shared", "net", "afs", "fsx", "efs", "vol", "volume", "volumes", "Volumes", "content",
    "kaggle", "private", "cluster", "local", "runs", "etc",
))  # fmt: skip
_PATH_KEY = re.compile(
    r"(path|dir|directory|file|files|folder|root|pretrained|startfrom|output|config|cache|checkpoint)$"
)
# What a model reads and writes, patterns, and addresses at a server: a slash in them is no folder's.
_TEXT_KEY = re.compile(
    r"(prompts?|template|patterns?|regex|stop[a-z]*|words?|strings?|sequences?|prefix|suffix|instructions?|messages?"
    r"|contents?|texts?|system|separators?|delimiters?|format|answers?|questions?|responses?|endpoint|route)$"
)
_CHAT_TEMPLATE = "chattemplate"  # may name a file
_FILE = re.compile(r"\S+\.(?:jsonl?|parquet|csv|tsv|txt|md|ya?ml|jinja2?)")
_CACHES = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "IPPO_CACHE")
_COMMON_NAMES = ("root", "user", "admin", "ubuntu", "localhost", "data", "home", "work", "runner")
_TOKEN = r"(?:/[\w.@+=-]+)"
_BEFORE = r"(?<![\w.\\/~<*+)\]}%-])"


class _Machine(NamedTuple):
    """What names this machine and its user in a path."""

    here: str
    """The working folder; empty if every path, or a home, lies below it."""
    home: str
    """Empty if there is none."""
    names: frozenset[str]
    """Of the user and the host."""
    roots: tuple[str, ...]
    """Folders that begin a path of this machine also inside a longer text."""
    inside: re.Pattern[str]
    """A path inside a longer text."""


def public_name(name: str) -> str:
    """Return a path as a name that means something elsewhere; another text, such as a Hub id, as it is.

    An absolute path of this library's package begins with `experiments`, one in the cache of the Hub is the id, one
    below the working folder is relative to it, one below a folder `runs` begins with `runs`, and of another only the
    last part is left. A relative path stays.

    Args:
        name: a path or a name.

    Example:
        >>> public_name("/home/ann/work/runs/gsm8k/sft"), public_name("/data/Llama-3-8B"), public_name("owner/name")
        ('runs/gsm8k/sft', 'Llama-3-8B', 'owner/name')
    """
    name = re.sub(r"^file:(?://(?=/))?(?=/)", "", name)
    if not (name.startswith("/") or _FROM_HOME.match(name) or _WINDOWS.match(name)):
        return name
    if _PACKAGED.match(name):
        return _PACKAGED.sub("experiments/", name).replace("\\", "/")
    found = _HUB_CACHE.search(name)
    if found:
        return f"{found[1]}/{found[2]}"
    path, machine = _plain(name), _machine()
    if path == machine.home:
        return "~"
    relative = _below(path, machine.here)
    if relative is not None:
        return relative
    parts = [part for part in path.split("/") if part]
    # Of a home alone, even the last part is a name of somebody.
    if not parts or parts[-1] in machine.names or (len(parts) > 1 and parts[-2] in _HOMES and path[0] != "~"):
        return HIDDEN if parts else name
    private = [index for index, part in enumerate(parts) if part in machine.names]
    parts = parts[private[-1] + 1 :] if private else parts
    if _RUNS in parts[:-1]:
        return "/".join(parts[len(parts) - 1 - parts[::-1].index(_RUNS) :])
    # of a run of a comparison, METHOD/seed_1
    return "/".join(parts[-2:] if _SEED.fullmatch(parts[-1]) else parts[-1:])


def public_text(text: str, *, key: str = "") -> str:
    """Return a value for others: a whole path as `public_name` gives it, no secret, and other text nearly as it is.

    Inside of a longer text, only paths change that begin with the home, the working folder, a cache or this package, or
    contain the name of the user or the host. Prompts, patterns and stop strings are longer texts, whatever they are.

    Args:
        text: a value of a configuration, or any text.
        key: of the value.

    Example:
        >>> public_text("/scratch/ada/rows.jsonl"), public_text("/no_think"), public_text("x1", key="api_key")
        ('rows.jsonl', '/no_think', '<hidden>')
    """
    if is_secret_key(key):
        return hidden_value(text)
    text = without_secret_forms(text)
    if not is_prose(key) or _FILE.fullmatch(text):
        name = _name_of_whole(text, key=key)
        if name is not None:
            return name
    return _without_roots(text)


def below_home(value: str, *, key: str) -> str | None:
    """Return a path relative to the home, if that is the shortest name that finds it here; else None.

    Args:
        value: of an option.
        key: of the option.
    """
    machine = _machine()
    if (
        is_secret_key(key)
        or (is_prose(key) and not _FILE.fullmatch(value))
        or _NO_NAME.search(value)
        or without_secret_forms(value) != value
    ):
        return None
    if value.startswith("~/") or value == "~":
        return value[2:]
    path = _plain(value)
    if not value.startswith("/") or _below(path, machine.here) is not None or _PACKAGED.match(path):
        return None
    return "" if path == machine.home else _below(path, machine.home)


def is_prose(key: str) -> bool:
    """Return whether a value is text that a model reads or writes, a pattern, or an address at a server.

    Args:
        key: of the value.
    """
    name = re.sub(r"[-_\s]", "", key[-200:].rsplit(".", 1)[-1].lower())
    return not name.endswith(_CHAT_TEMPLATE) and _TEXT_KEY.search(name) is not None


def _name_of_whole(text: str, *, key: str) -> str | None:
    """Return the public name of a text that is one path as a whole; None for any other text."""
    found = _SCHEME.fullmatch(text)
    if found is None or (found[2].startswith("//") and not found[2].startswith("///")):
        return public_name(text) if _is_path(text, key=key) else None
    path = "/" + found[2].lstrip("/")  # sqlite:////home/ada/x.db, path:/home/ada/x
    if not _is_path(path, key=key):
        return None
    prefix = f"{found[1]}:{'///' if found[2].startswith('//') else ''}"
    return public_name(path) if found[1] == "file" else prefix + public_name(path)


def _is_path(text: str, *, key: str) -> bool:
    if _WINDOWS_WHOLE.fullmatch(text):
        return True
    if _NO_NAME.search(text) or not text.startswith(("/", "~")):
        return False
    if _FROM_HOME.match(text):
        return True
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not text.startswith("/") or len(parts) < 2:
        return False
    name = re.sub(r"[-_\s]", "", key.lower())
    return parts[0] in _TOPS or _PATH_KEY.search(name) is not None or _is_folder(f"/{parts[0]}")


def _is_folder(path: str) -> bool:
    try:
        return os.path.isdir(path)
    except ValueError:  # a NUL in it
        return False


def _without_roots(text: str) -> str:
    machine = _machine()

    def shown(found: re.Match[str]) -> str:
        path = found[0].rstrip(".")  # the end of a sentence
        parts = path.split("/")
        is_known = any(_below(path, root) is not None for root in machine.roots)
        if len(parts) < 3 or not (is_known or machine.names.intersection(parts)):
            return found[0]
        return public_name(path) + found[0][len(path) :]

    return machine.inside.sub(shown, text)


def _plain(name: str) -> str:
    """Return a path with `/`, without a drive, `.`, `..` and doubled slashes."""
    if _WINDOWS.match(name):
        return "/" + "/".join(PureWindowsPath(name).parts[1:])
    path = posixpath.normpath(name)
    return "/" + path.lstrip("/") if path.startswith("/") else path


def _below(path: str, root: str) -> str | None:
    if not root or not (path == root or path.startswith(f"{root}/")):
        return None
    return path[len(root) + 1 :] or "."


def _machine() -> _Machine:
    try:
        here = str(Path.cwd())
    except OSError:  # it was removed
        here = ""
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without one
        home = ""
    caches = tuple(os.environ.get(name, "") for name in _CACHES)
    return _machine_of(here, "" if home == "/" else home, caches)


@lru_cache(maxsize=8)
def _machine_of(here: str, home: str, caches: tuple[str, ...]) -> _Machine:
    try:
        user = getpass.getuser()
    except (KeyError, ImportError, OSError):  # no name for the id, as in some containers
        user = ""
    above, _, last = home.rpartition("/")
    of_home = last if above.rsplit("/", 1)[-1] in _HOMES else ""  # not that of /workspace, which is no user
    names = {user, of_home, platform.node(), platform.node().split(".")[0]}
    names = {name for name in names if len(name) > 2 and name not in _COMMON_NAMES}
    # relative to a folder above the home, a path would begin with the name of the user
    here = "" if here == "/" or home.startswith(f"{here}/") or here.rsplit("/", 1)[-1] in _HOMES else here
    package = str(Path(__file__).parents[1])
    found = {root.rstrip("/") for root in (here, home, package, *caches) if root.startswith("/")} - {""}
    roots = tuple(sorted(found, key=len, reverse=True))
    known = rf"(?:{'|'.join(map(re.escape, roots))})(?=[^\w.-]|$){_TOKEN}*/?|"
    return _Machine(here, home, frozenset(names), roots, re.compile(rf"{_BEFORE}(?:{known}{_TOKEN}{{2,}}/?)"))
