"""From the long reports of the YAML parser to the one line that helps."""

from __future__ import annotations

import re

# what the parser says about alternatives that nobody meant, and dumps of whole configurations
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value:",
    "Expected a <class 'NoneType'>",
)
_KEY = re.compile(r'^Parser key "([^"]*)":\s*(.*)$')
_CLASS = re.compile(r"^Problem with given class_path '([^']*)':\s*(.*)$")
_TYPE = re.compile(r"^Type \S.* expects a function or a callable class: (.*)$")


def one_line(message: str, *, limit: int = 400) -> str:
    r"""Return the field and what is wrong with it, on one line.

    Args:
        message: of a `UserError` or of the parser, any number of lines.
        limit: characters; what is longer is cut.

    Example:
        >>> one_line('Parser key "loop.max_iterations":\n  Expected a <class \'int\'>. Got value: many')
        'loop.max_iterations: expected an int. Got value: many'
    """
    keys: list[str] = []
    owner = ""
    said: list[str] = []
    for raw in message.splitlines():
        line = raw.strip().removeprefix("- ")
        if not line or line.startswith(_NOISE):
            continue
        if match := _KEY.match(line):
            keys.append(match.group(1))
            line = match.group(2)
        elif match := _CLASS.match(line):
            owner = match.group(1).rsplit(".", 1)[-1]
            line = match.group(2)
        if match := _TYPE.match(line):
            line = match.group(1)
        if line:
            said.append(_plain(line))
    field = ".".join(keys)
    inside = f" (in {owner})" if owner else ""
    text = " ".join(said) or "is not valid"
    return (f"{field}: {text}{inside}" if field else f"{text}{inside}")[:limit]


def _plain(line: str) -> str:
    """Return a line of the parser without Python's spelling of types."""
    line = re.sub(r"^Expected a <class '([^']*)'>", lambda match: f"expected {_article(match.group(1))}", line)
    line = re.sub(r"^Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", line)
    return line.replace("typing.", "")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
