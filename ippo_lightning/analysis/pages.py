"""What the pages of all analyses share: their templates, in the look of the report, and figures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ippo_lightning import report
from ippo_lightning.report.display import percent, plain, unbroken
from ippo_lightning.report.rendering import Figure
from ippo_lightning.storage.untrusted_text import visible_text

FROM_ZERO = "counted from 0"
"""Stands beside each number of an iteration that a reader may type; the report counts iterations that are done."""


@dataclass(frozen=True)
class PageFigure(Figure):
    """A figure that has another shape on a phone, where the letters of the usual one would be too small."""

    narrow_uri: str
    """The PNG for a phone."""


class Draw(Protocol):
    """Writes a figure as PNG and returns it in words, for readers who do not see it; None if there is nothing."""

    def __call__(self, path: Path, *, narrow: bool) -> str | None:
        """Draw into `path`, for a phone if `narrow`."""


def page_environment() -> Environment:
    """Return the environment of the templates of this room and of the report's style."""
    # Escaped always: a model may have written HTML, and names come from files. A misspelt name is an error.
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(report.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, plain=plain, visible=visible_text, unbroken=unbroken)
    return environment


def page_figures(folder: Path, drawings: Sequence[tuple[str, str, Draw]]) -> dict[str, PageFigure]:
    """Draw figures, and return those that there are data for, by name.

    Args:
        folder: of the PNG files; those of an earlier page are replaced or removed.
        drawings: name, caption, and how the figure is drawn.
    """
    folder.mkdir(exist_ok=True)
    found = {}
    for name, caption, draw in drawings:
        wide, narrow = folder / f"{name}.png", folder / f"{name}_narrow.png"
        for path in (wide, narrow):
            path.unlink(missing_ok=True)
        words = draw(wide, narrow=False)
        if words is not None:
            draw(narrow, narrow=True)
            found[name] = PageFigure(name, caption, words, _data_uri(wide), _data_uri(narrow))
    return found


def nothing(path: Path, *, narrow: bool) -> None:
    """Draw nothing: there are no data."""


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
