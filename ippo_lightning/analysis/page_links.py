"""Links between the pages about one run: its report, diagnoses, traces and interventions."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from ippo_lightning.analysis.pages import page_environment
from ippo_lightning.storage.atomic import write_text_whole
from ippo_lightning.storage.run_folder import DIAGNOSIS, INTERVENTION, REPORT, REPORT_FOLDER, TRACE

_KINDS = {
    "Diagnosis": (DIAGNOSIS, "diagnosis.html"),
    "Trace": (TRACE, "trace.html"),
    "Intervention": (INTERVENTION, "intervention.html"),
}
_MOST = 12
"""Links to pages of one kind."""
_LARGEST = 1 << 26
"""Bytes; a larger page was not written here."""
_PLACE = re.compile(r"(<!-- pages -->).*?(<!-- /pages -->)", re.DOTALL)
"""In a page, what others it links to; text of a model cannot contain it, because it is escaped."""


def link_pages(run: Path) -> None:
    """Let all pages of analyses in the folder of a run link each other and the report.

    Args:
        run: folder of the run; a page that cannot be changed keeps its links.
    """
    found = dict(_pages(run))
    report = run / REPORT_FOLDER / REPORT
    every = {"Report": report, **found} if report.is_file() else found
    for page in found.values():
        links = {title: None if page == path else _relative(path, page.parent) for title, path in every.items()}
        html = page_environment().get_template("links.html.j2").render(links=links if len(links) > 1 else {})
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if page.stat().st_size <= _LARGEST:
                text = page.read_text(encoding="utf-8")
                start, *rest = _PLACE.split(text, maxsplit=1)
                if rest and start + rest[0] + html + rest[1] + rest[2] != text:
                    write_text_whole(page, start + rest[0] + html + rest[1] + rest[2])


def _pages(run: Path) -> Iterator[tuple[str, Path]]:
    for kind, (folder, name) in _KINDS.items():
        # the newest iterations, whose names are the last ones
        for page in sorted((run / folder).glob(f"*/{name}"))[-_MOST:]:
            yield f"{kind}: {_words(page.parent.name)}", page


def _words(folder: str) -> str:
    """Return the name of a page's folder as a reader knows it.

    Example:
        >>> _words("iteration_0000012"), _words("14_2"), _words("every_2_of_3_runs")
        ('iteration 12', '14:2', 'every 2 of 3 runs')
    """
    if re.fullmatch(r"\d+_\d+", folder):
        return folder.replace("_", ":")
    return re.sub(r"(?<=iteration )0+(?=\d)", "", folder.replace("_", " "))


def _relative(path: Path, start: Path) -> str:
    return quote(Path(os.path.relpath(path, start)).as_posix())
