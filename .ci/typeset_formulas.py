"""A hook of mkdocs: formulas in `$...$` and `$$...$$` become MathML, which browsers typeset without any script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', flags=re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Return the HTML of a page with each formula as MathML.

    Args:
        content: HTML in which `pymdownx.arithmatex` has marked the formulas.

    Raises:
        ValueError: a formula is marked in another way than expected, so it would not be typeset.
    """
    typeset = FORMULA.sub(_mathml, content)
    if 'class="arithmatex"' in typeset:
        raise ValueError("a formula is not typeset: expected the marks of pymdownx.arithmatex with `generic: true`")
    return typeset


def _mathml(found: re.Match[str]) -> str:
    inline, block = found.group(2), found.group(3)
    if inline is not None:
        return convert(html.unescape(inline))
    # A formula that is wider than a phone scrolls by itself, and the page does not.
    return f'<div class="formula">{convert(html.unescape(block), display="block")}</div>'
