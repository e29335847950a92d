from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from ippo_lightning.report import read_comparison, results_markdown, results_table, summarise
from ippo_lightning.report.display import escaped_markdown
from ippo_lightning.report.tables import intervals_over, pairs_over


def printed(results, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(results_table(results))
    return console.file.getvalue()


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_table_fits_a_terminal_and_loses_nothing(folders, seeds):
    results = summarise(read_comparison(folders.comparison(seeds=seeds, iterations=3, episodes=2)))
    for summary in results["methods"].values():  # the widest numbers that can occur
        for metric, interval in summary["intervals"].items():
            summary[metric] = 1.0
            summary["intervals"][metric] = interval and [0.997, 1.0]
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "Random half" in text
    assert text.count("100.0") >= 16
    assert ("99.7\N{EN DASH}100.0" in text) == (seeds > 1)


def test_the_table_shows_percent_kept_fraction_and_seconds(folders):
    text = printed(summarise(read_comparison(folders.comparison(seeds=1, iterations=6, episodes=2))))
    line = next(line for line in text.splitlines() if "I-PPO" in line)
    # The kept fraction falls from 0.53 by 0.025 an iteration: the last two of six average 0.4175, all six 0.4675.
    # An iteration takes 0.7 + 0.25 seconds and 1.6 times its kept fraction.
    assert line.split()[-2:] == ["42", "1.70"]
    assert next(line for line in text.splitlines() if "SFT" in line).split()[-2:] == ["\N{EN DASH}"] * 2


@pytest.mark.parametrize(("k", "name"), [(8, "pass@8"), (None, "pass@k")])
def test_the_tables_name_the_k_of_pass_at_k(k, name, folders):
    results = summarise(read_comparison(folders.comparison(seeds=1, iterations=2)))
    assert results["k"] == 4  # of the runs
    results["k"] = k
    assert name in printed(results).split()
    assert f"| {name} % |" in results_markdown(results)


def test_a_title_is_no_markup(folders):
    results = summarise(read_comparison(folders.comparison(seeds=1, iterations=2)))
    results["methods"]["ppo"]["title"] = "[bold]P|P<b>"
    assert "[bold]P|P<b>" in printed(results)
    assert r"\[bold\]P\|P\<b\>" in results_markdown(results)


def test_unfinished_runs_are_named(folders):
    folders.comparison(seeds=2, iterations=2)
    (folders.root / "ippo" / "seed_2" / "results.json").unlink()
    results = summarise(read_comparison(folders.root))
    assert "left out: 1" in printed(results).replace("\n", " ")
    assert "I-PPO, seed 2" in results_markdown(results)


def test_markdown_rows_have_as_many_cells_as_the_heading(folders):
    text = results_markdown(summarise(read_comparison(folders.comparison(seeds=3, iterations=3))))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows[:6]} == {9}
    assert {line.count("|") for line in rows[6:]} == {5}
    assert len(rows) == 6 + 5
    assert "ippo compare --config" in text
    assert "bootstrap" not in text  # near 0 and 1 it is another interval


def test_the_sentence_behind_the_differences_is_no_row_of_their_table(folders):
    results = summarise(read_comparison(folders.comparison(seeds=1, iterations=3)))
    assert not pairs_over(results)
    for found in results["differences"].values():
        found["exact_match"] |= {"interval": [0.0, 0.1], "interval_over": "prompts"}
    before, _, _ = results_markdown(results).partition(pairs_over(results))
    assert before.endswith("|\n\n")


def test_a_comparison_in_which_nothing_finished_still_has_a_table(folders):
    folders.list_methods({"ppo": {"title": "PPO", "seeds": [1]}})
    results = summarise(read_comparison(folders.root))
    assert "PPO" in printed(results)
    assert "nothing recorded" in results_markdown(results)


def test_the_tables_tell_of_shared_cores(folders):
    folders.comparison(seeds=1, iterations=2)
    listed = json.loads((folders.root / "comparison.json").read_text())
    (folders.root / "comparison.json").write_text(json.dumps(listed | {"jobs": 4}))
    results = summarise(read_comparison(folders.root))
    words = "4 runs at a time shared the cores, so the seconds do not compare the methods."
    assert words in " ".join(printed(results).split())
    assert words in results_markdown(results)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ([None, None], ""), (["seeds", "seeds"], "seeds"), (["prompts", None], "prompts"),
        (["prompts", "seeds"], "seeds (with one seed: over prompts)"),
    ],
)  # fmt: skip
def test_the_tables_tell_what_the_intervals_are_over(over, words):
    assert intervals_over({"methods": {str(i): {"interval_over": name} for i, name in enumerate(over)}}) == words


@pytest.mark.parametrize(
    ("name", "written"),
    [("x86_64", "x86_64"), ("_em_", "\\_em\\_"), ("__init__", "\\_\\_init\\_\\_"), ("a _b", "a \\_b")],
)
def test_a_line_below_a_word_is_escaped_where_markdown_would_read_it(name, written):
    assert escaped_markdown(name) == written
