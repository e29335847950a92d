"""What the pages of all analyses share: their templates, in the look of the report, and figures inside the page."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ippo_lightning import report
from ippo_lightning.report.display import percent, plain, unbroken
from ippo_lightning.report.rendering import Figure
from ippo_lightning.storage.untrusted_text import visible_text


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


def embedded(name: str, caption: str, alternative: str, path: Path) -> Figure:
    """Return a figure with its picture inside.

    Args:
        name: of the figure.
        caption: what to see in it.
        alternative: for readers who do not see it.
        path: of the PNG file.
    """
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return Figure(name, caption, alternative, f"data:image/png;base64,{encoded}")
