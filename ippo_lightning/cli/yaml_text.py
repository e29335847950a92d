"""YAML as this program reads and writes it: UTF-8 in every locale, and bounded in size, depth and time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.storage.checksums import has_wrong_checksum_line

MAX_CHARACTERS = 1_000_000
"""Of a YAML; the full configuration of a run has about ten thousand."""
MAX_DEPTH = 50
"""Nested lists and mappings; every later step walks through them by recursion."""
MAX_VALUES = 100_000
"""Scalars, lists and mappings, each alias counted with all that it repeats."""
_MAX_NUMBER = 1000  # characters of an unquoted value that begins like a number; Python takes minutes for a million


def read_text(path: Path) -> str:
    """Return the text of a file, which is UTF-8 whatever the locale.

    Raises:
        UserError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            # read with a bound: the size that a file states need not be the size that it has
            content = file.read(4 * MAX_CHARACTERS + 1)
        if len(content) > 4 * MAX_CHARACTERS:
            raise UserError(f"config: {path} is larger than a YAML of settings can be ({MAX_CHARACTERS:,} characters)")
        # -sig, because some editors on Windows begin a file with a byte order mark
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"config: {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"config: {path} cannot be read ({error.strerror})") from error
    # said and not refused: a user may edit the configuration of a run and begin another with it
    if has_wrong_checksum_line(text):
        warnings.warn(f"config: {path} was changed since a run wrote it; it is used as it is", stacklevel=2)
    return text


def load_yaml(text: str, *, origin: str) -> Any:
    """Return the value of a YAML text, as the parser reads it.

    Args:
        text: YAML 1.1, except that `1e-3` is a number.
        origin: names the text in an error.

    Raises:
        UserError: it is not YAML, or is larger, deeper or more repetitive than settings are.
    """
    import yaml

    try:
        return bounded_loader()(text)
    except yaml.YAMLError as error:
        raise UserError(f"config: {origin}, {_place_and_problem(error)}") from error


@cache
def bounded_loader() -> Callable[[str], Any]:
    """Return the parser's own loader with bounds; from the first call on, the parser itself uses it for every text."""
    import yaml
    from jsonargparse import get_loader, set_loader

    # not PyYAML's own loader, which reads 1e-3 as a text
    own = get_loader("yaml")

    def load(text: str) -> Any:
        try:
            _check_bounds(text)
            return own(text)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            # a value that its tag does not fit: PyYAML lets the error of int() or of a date through
            raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error

    set_loader("yaml", load, exceptions=(yaml.YAMLError,))
    return load


def _check_bounds(text: str) -> None:
    """Refuse a text that is too large, before any object is made of it.

    The events of the scanner come one by one, so that a text of a million brackets ends at the first that is too deep.
    """
    import yaml

    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"{len(text):,} characters; expected at most {MAX_CHARACTERS:,}")
    counter = _Counter()
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        problem = counter.add(event)
        if problem is not None:
            raise yaml.YAMLError(problem)


class _Counter:
    """Counts the values of a YAML and its depth, each alias with all that it repeats."""

    def __init__(self) -> None:
        self.total = 0
        self.sizes: dict[str | None, tuple[int, int]] = {}
        """By anchor: values, and levels below."""
        self.open: list[tuple[str | None, int]] = []
        self.heights: list[int] = [0]

    def add(self, event: Any) -> str | None:
        """Count one event; return what is wrong, or None."""
        import yaml

        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self.open.pop()
            height = self.heights.pop() + 1
            self.sizes[anchor] = (self.total - before, height)
            self.heights[-1] = max(self.heights[-1], height)
            return None
        height = 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in self.open):
                return f"*{event.anchor} stands inside &{event.anchor}; expected no value inside itself"
            size, height = self.sizes.get(event.anchor, (1, 0))
            self.total += size
            self.heights[-1] = max(self.heights[-1], height)
        elif isinstance(event, yaml.NodeEvent):
            self.total += 1
        if isinstance(event, yaml.CollectionStartEvent):
            self.open.append((event.anchor, self.total - 1))
            self.heights.append(0)
        if len(self.open) + height > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        if self.total > MAX_VALUES:
            return f"more than {MAX_VALUES:,} values, aliases counted with what they repeat"
        return _number_problem(event) if isinstance(event, yaml.ScalarEvent) else None


def _number_problem(event: Any) -> str | None:
    # `1:59:59:...` is a number of base 60, and the time to read it grows with the square of its length
    is_plain = event.style in (None, "") or event.tag is not None
    if is_plain and len(event.value) > _MAX_NUMBER and event.value.lstrip("+-.")[:1].isdigit():
        return f"a number of {len(event.value):,} characters; expected at most {_MAX_NUMBER:,}"
    return None


def _place_and_problem(error: Exception) -> str:
    """Return where a YAML text breaks off; what begins there may be named on an earlier line than the error."""
    begin, end = getattr(error, "context_mark", None), getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
    if "nesting depth" in str(problem):  # newer versions of PyYAML have a limit of their own
        return f"nested deeper than {MAX_DEPTH} levels"
    place = f"line {end.line + 1}, column {end.column + 1}: " if end is not None else ""
    started = f" ({error.context}, from line {begin.line + 1})" if begin is not None else ""  # type: ignore[attr-defined]
    return f"{place}{problem}{started}"


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Return a YAML text that the parser reads as the same values: every text is quoted, so that '1e-3' stays text."""
    import yaml

    class Quoting(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
    # unsorted, because the order of a dictionary may matter to the class that gets it
    return yaml.dump(dict(content), Dumper=Quoting, sort_keys=False, allow_unicode=True, width=1_000_000)


def loaded_word(word: str) -> Any:
    """Return the value of a word of the command line, which may be any text and need not be YAML."""
    try:
        return load_yaml(word, origin="")
    except UserError:
        return word


def contains_null(value: Any) -> bool:
    """Return whether a value is null, or has one in its mappings and lists."""
    if isinstance(value, Mapping):
        return any(contains_null(part) for part in value.values())
    return any(contains_null(part) for part in value) if isinstance(value, list) else value is None
