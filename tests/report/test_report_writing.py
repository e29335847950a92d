from __future__ import annotations

import base64
import json
import logging
import re
from html.parser import HTMLParser

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.report import report_of, write_report

MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Document(HTMLParser):
    """Collects the elements of an HTML document and refuses unbalanced tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def written_report(root):
    return Document(write_report(root).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory, folder_maker):
    root = folder_maker(tmp_path_factory.mktemp("report") / "comparison").comparison(seeds=2, iterations=6, episodes=20)
    write_report(root)
    return root


@pytest.fixture(scope="module")
def html(written):
    return Document((written / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def drawn(folders, few_figures):
    """Return a comparison of two methods whose report has few figures."""
    return folders.comparison(seeds=1, iterations=6, episodes=10, methods=("ppo", "ippo"))


@pytest.fixture
def small(folders, without_figures):
    return folders.comparison(seeds=2, iterations=3, episodes=20)


def test_everything_is_written(written):
    assert {path.name for path in written.iterdir() if path.is_file()} == {
        "comparison.json", "report.html", "results.json", "results.md", "table.txt",
    }  # fmt: skip
    assert len(list((written / "figures").glob("*.png"))) == 11
    results = json.loads((written / "results.json").read_text())
    assert results["methods"]["ippo"]["title"] == "I-PPO"
    assert {path.stem for path in (written / "figures").iterdir()} == set(results["figures"])
    assert max(len(line) for line in (written / "table.txt").read_text().splitlines()) <= 80


@pytest.mark.parametrize("listed", ["{", '{"methods": {}, "figures": [3]}'])
def test_figures_of_the_user_stay(drawn, listed):
    notes, gone = (drawn / "figures" / f"reward_part_{name}.png" for name in ("notes", "gone"))
    notes.parent.mkdir()
    for path in (notes, gone):
        path.write_bytes(b"a picture")
    (drawn / "results.json").write_text(listed)
    write_report(drawn)
    assert notes.exists()
    results = json.loads((drawn / "results.json").read_text())
    (drawn / "results.json").write_text(json.dumps(results | {"figures": ["reward_part_gone", *results["figures"]]}))
    write_report(drawn)
    assert (notes.exists(), gone.exists()) == (True, False)


def test_the_report_needs_no_other_file(written, html):
    for _, attributes in html.elements:
        assert not set(attributes) & {"srcset", "action", "onload", "onerror", "onclick"}
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in (attributes.get("style") or "")
    assert not {tag for tag, _ in html.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\(|https?://", (written / "report.html").read_text())


def test_pictures_are_inside_and_described(html):
    images = html.all("img")
    assert len(images) == 11
    for image in images:
        assert base64.b64decode(image["src"].partition(",")[2], validate=True).startswith(b"\x89PNG")
        assert len(image["alt"]) > 40


def test_headings_and_links_form_an_outline(html):
    assert [len(html.all(tag)) for tag in ("html", "main", "h1", "title")] == [1, 1, 1, 1]
    assert html.all("html")[0]["lang"] == "en"
    assert len(html.all("caption")) == len(html.all("table"))
    targets = {attributes["id"] for _, attributes in html.elements if "id" in attributes}
    assert (
        {link["href"][1:] for link in html.all("a")}
        == targets
        == {"results", "equal-compute", "health", "training", "episodes", "recognised", "settings"}
    )


def test_hostile_text_stays_text(drawn):
    small = drawn  # titles are in the figures, too
    hostile = (
        "<script>alert(1)</script>\x1b[31m\x00\u202e\ud800 {{ 7*7 }} <img src=x onerror=alert(1)>\"'" + "A" * 1_000_000
    )
    for name in ("prompt", "response", "label"):
        row = {"iteration": 2, "prompt": "p", "response": "r", "label": "faithful", "score": 1e6, "weight": 9.0}
        with (small / "ippo" / "seed_1" / "episodes.jsonl").open("a") as handle:
            handle.write(json.dumps(row | {name: hostile, "reward": 1.0}) + "\n")
    listed = json.loads((small / "comparison.json").read_text())
    listed["methods"]["ippo"]["title"] = "<b>I\x1b[1m$x^2$"
    listed |= {"command": hostile, "config": hostile, "versions": {hostile: hostile}, "machine": hostile}
    (small / "comparison.json").write_text(json.dumps(listed))
    (small / "ippo" / "seed_1" / "config.yaml").write_text("a: </code></pre><script>x</script>\n")
    html = written_report(small)
    text = (small / "report.html").read_text(encoding="utf-8")
    assert not {tag for tag, _ in html.elements} & {"script", "b"}
    assert all(image["src"].startswith("data:") for image in html.all("img"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text)
    assert "␛[31m␀⟨U+202E⟩⟨U+D800⟩ {{ 7*7 }}" in "".join(html.text)
    assert "A" * 100_000 not in text
    assert len(text) < 2_000_000
    for name in ("table.txt", "results.md"):
        assert "\x1b" not in (small / name).read_text(encoding="utf-8")


def test_the_extremes_of_influence_runs_are_shown(small):
    for score, text in ((1e6, "top text"), (-1e6, "low text")):
        row = {
            "iteration": 0,
            "prompt": "p",
            "response": text,
            "label": "shortcut",
            "reward": 1,
            "score": score,
            "weight": 0,
        }
        with (small / "ippo" / "seed_2" / "episodes.jsonl").open("a") as handle:
            handle.write(json.dumps(row) + "\n")
    shown = "".join(written_report(small).text)
    highest, lowest = (shown.index(f"episodes with the {end} scores") for end in ("highest", "lowest"))
    assert highest < shown.index("top text") < lowest < shown.index("low text")


def test_unfinished_runs_and_broken_lines_are_named(small):
    (small / "random" / "seed_2" / "results.json").unlink()
    path = small / "ppo" / "seed_1" / "history.jsonl"
    path.write_text("broken\n" + path.read_text())
    shown = " ".join("".join(written_report(small).text).split())
    assert "Random half, seed 2: stopped after 3 iterations" in shown
    assert "ppo/seed_1: 1 unreadable line left out." in shown


def test_each_number_of_a_table_has_its_heading_for_narrow_screens(small):
    cells = written_report(small).all("td")
    nameless = {cell.get("class") for cell in cells if not cell.get("data-name")}
    assert len(cells) > 50
    assert nameless <= {"advice", "text", "answer"}  # sentences and texts, which need none


def test_a_figure_that_lost_its_data_disappears(drawn, caplog):
    write_report(drawn)
    assert (drawn / "figures" / "exact_match.png").exists()
    for path in drawn.glob("*/*/evaluations.jsonl"):
        path.unlink()
    with caplog.at_level(logging.INFO, logger="ippo_lightning.report"):
        html = written_report(drawn)
    assert not (drawn / "figures" / "exact_match.png").exists()
    assert "figure exact_match skipped" in caplog.text
    assert len(html.all("img")) == 2
    assert "Not drawn" not in "".join(html.text)  # what no run recorded is no news


def test_a_figure_with_a_single_value_is_named(drawn):
    for path in drawn.glob("*/*/evaluations.jsonl"):
        path.write_text(path.read_text().splitlines()[0] + "\n")
    text = " ".join("".join(written_report(drawn).text).split())
    assert "Not drawn, because the runs contain it for one iteration only: exact match, unfaithful fraction." in text


@pytest.mark.parametrize("methods", [("sft",), ("ppo",), ("sft", "ppo", "ippo"), ("random", "ippo")])
def test_any_set_of_methods_makes_a_report(folders, without_figures, methods):
    html = written_report(folders.comparison(seeds=1, iterations=2, episodes=4, methods=methods))
    assert len(html.all("h1")) == 1


def test_a_comparison_in_which_nothing_finished_makes_a_report(folders, without_figures):
    folders.list_methods({"ppo": {"title": "PPO", "seeds": [1, 2]}})
    shown = "".join(written_report(folders.root).text)
    assert "PPO, seed 2: nothing recorded" in shown


def test_writing_twice_gives_the_same_files(drawn):
    write_report(drawn)
    first = {path: path.read_bytes() for path in drawn.rglob("*") if path.is_file()}
    assert write_report(drawn) == drawn / "report.html"
    assert first == {path: path.read_bytes() for path in drawn.rglob("*") if path.is_file()}


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"comparison\.json"):
        write_report(tmp_path)


def words_of(html):
    return " ".join("".join(html.text).split())


def test_a_table_shows_who_changed_the_plan(html):
    shown = words_of(html)
    assert "I-PPO: how many of the recorded episodes each reason dropped or scaled" in shown
    assert "Random half: how many of the recorded episodes" in shown
    assert " PPO: how many" not in shown  # nothing changed its plan


def test_the_report_tells_what_was_kept_and_what_is_healthy(html):
    shown = words_of(html)
    assert "I-PPO: what was kept and what was dropped The update used" in shown
    assert "LabelAdvantage > 0Advantage < 0All" in shown
    assert " PPO: what was kept" not in shown  # it dropped nothing
    assert "Health of I-PPO: " in shown
    assert "Kept fraction Fraction of the episodes that the update used" in shown
    assert "Each curve is the mean over seeds" in shown


def test_an_episode_is_shown_with_its_place_and_its_advantage(small):
    (small / "ippo" / "seed_2" / "episodes.jsonl").unlink()
    rows = [
        {"iteration": 3, "prompt": "p", "response": f"r{i}", "label": "faithful", "reward": 1, "score": score,
         "weight": 1, "advantage": -0.25}
        for i, score in enumerate((7.0, 5.0, -2.0))
    ]  # fmt: skip
    path = small / "ippo" / "seed_1" / "episodes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = words_of(written_report(small))
    assert f"4 (seed 1), 1 of 3 7 {MINUS}0.250 1 1 faithful p r0" in shown
    assert f"4 (seed 1), 1 of 3 {MINUS}2 {MINUS}0.250 1 1 faithful p r2" in shown


def test_runs_that_shared_cores_are_named(small):
    listed = json.loads((small / "comparison.json").read_text())
    (small / "comparison.json").write_text(json.dumps(listed | {"machine": "x86_64, 2 cores, 3 runs at a time"}))
    assert words_of(written_report(small)).count("3 runs at a time shared the cores") == 3


def test_each_baseline_is_named_if_there_are_several(small):
    listed = json.loads((small / "comparison.json").read_text())
    listed["methods"]["ippo"]["baseline"] = "random"
    (small / "comparison.json").write_text(json.dumps(listed))
    shown = words_of(written_report(small))
    assert "Difference from the baseline in percentage points" in shown
    assert "I-PPO Random half" in shown


def test_a_comparison_without_roles_makes_a_report_without_differences(small):
    listed = json.loads((small / "comparison.json").read_text())
    for entry in listed["methods"].values():
        del entry["baseline"], entry["featured"]
    (small / "comparison.json").write_text(json.dumps(listed))
    shown = words_of(written_report(small))
    assert "Difference from" not in shown
    assert "Results of SFT, PPO, Random half and I-PPO" in shown


def test_roles_may_be_given_for_runs_side_by_side(folders, tmp_path, without_figures):
    runs = [folders.run(method, 1, iterations=2, episodes=4) for method in ("ppo", "ippo")]
    path = report_of(runs, output=tmp_path / "out", baseline="ppo", featured="ippo")
    assert path == tmp_path / "out" / "report.html"
    assert "ippo against ppo on one seed" in path.read_text(encoding="utf-8")
    assert "Results of ppo and ippo" in report_of(runs, output=tmp_path / "out").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_into_is_one_line(small, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ippo_lightning.storage.output_folders.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"^output: .* \(Permission denied\); name another folder with --output$"):
        write_report(small)
