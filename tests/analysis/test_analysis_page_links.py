"""The pages of a run link each other and the report, also those that were there first."""

from __future__ import annotations

import re
from pathlib import Path

from ippo_lightning.analysis.page_links import link_pages

EMPTY = "<header><!-- pages --><!-- /pages --></header><p>&lt;!-- pages --&gt; \\1</p>"


def page(run: Path, *parts: str) -> Path:
    path = run.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(EMPTY, encoding="utf-8")
    return path


def links_of(path: Path) -> dict[str, str]:
    """Target by title, of the links of a page."""
    return {title: target for target, title in re.findall(r'<a href="([^"]*)">([^<]*)</a>', path.read_text())}


def test_each_page_links_all_others_by_relative_paths(tmp_path: Path) -> None:
    diagnosis = page(tmp_path, "diagnosis", "iteration_0000012", "diagnosis.html")
    link_pages(tmp_path)
    assert "<nav" not in diagnosis.read_text()
    trace = page(tmp_path, "trace", "14_2", "trace.html")
    intervention = page(tmp_path, "intervention", "every_2_of_3_runs", "intervention.html")
    report = page(tmp_path, "report", "report.html")
    link_pages(tmp_path)
    assert links_of(diagnosis) == {
        "Report": "../../report/report.html",
        "Trace: 14:2": "../../trace/14_2/trace.html",
        "Intervention: every 2 of 3 runs": "../../intervention/every_2_of_3_runs/intervention.html",
    }
    assert links_of(trace)["Diagnosis: iteration 12"] == "../../diagnosis/iteration_0000012/diagnosis.html"
    for one in (diagnosis, trace, intervention):
        assert all((one.parent / target).resolve().is_file() for target in links_of(one).values())
        assert one.read_text().endswith(EMPTY.partition("<!-- /pages -->")[2])
    assert report.read_text() == EMPTY


def test_a_page_that_is_gone_is_not_linked_again(tmp_path: Path) -> None:
    first, second = (page(tmp_path, "diagnosis", f"iteration_000000{n}", "diagnosis.html") for n in (1, 2))
    link_pages(tmp_path)
    assert list(links_of(first)) == ["Diagnosis: iteration 2"]
    second.unlink()
    link_pages(tmp_path)
    assert links_of(first) == {}


def test_what_is_no_page_of_ours_stays_as_it_is(tmp_path: Path) -> None:
    page(tmp_path, "trace", "chosen", "trace.html")
    other = page(tmp_path, "trace", "mine", "trace.html")
    other.write_bytes(b"\xff a page of the user")
    named = page(tmp_path, "diagnosis", '"><b>', "diagnosis.html")
    link_pages(tmp_path)
    assert other.read_bytes() == b"\xff a page of the user"
    assert '"><b>' not in (tmp_path / "trace" / "chosen" / "trace.html").read_text()
    assert "<b>Diagnosis" in named.read_text()
