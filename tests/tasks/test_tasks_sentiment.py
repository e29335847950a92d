"""The lexicon of VADER as a judge."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.tasks import SentimentGrader


def test_without_the_package_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(UserError, match=r"pip install 'ippo-lightning\[sentiment\]'"):
        SentimentGrader()


@pytest.fixture(scope="module")
def vader() -> Any:
    return pytest.importorskip("vaderSentiment", reason="needs vaderSentiment")


@pytest.mark.usefixtures("vader")
@pytest.mark.parametrize(
    ("response", "label"),
    [
        (" is a wonderful film.", "positive"),
        (" is a horrible film.", "negative"),
        (" is a film.", "neutral"),
        (" is not a good film.", "negative"),
        ("", "neutral"),
        (":)", "positive"),
    ],
)
def test_a_response_has_the_label_of_its_words(response: str, label: str) -> None:
    grade = SentimentGrader()("What a terrible, awful day. This", response, {})
    assert (grade.label, grade.correct, grade.faithful) == (label, label == "positive", None)


@pytest.mark.usefixtures("vader")
def test_the_prompt_counts_on_request() -> None:
    assert SentimentGrader(with_prompt=True)("A wonderful", " film.", {}).label == "positive"
    assert SentimentGrader()("A wonderful", " film.", {}).label == "neutral"


@pytest.mark.usefixtures("vader")
@pytest.mark.parametrize("word", ["good ", "but ", "!?", "\U0001f600", "no no least "])
def test_a_long_response_costs_no_time(word: str) -> None:
    grader, start = SentimentGrader(), time.process_time()
    grader("", word * 200_000, {})
    assert time.process_time() - start < 2


@pytest.mark.parametrize("limit", [0.0, 1.0, float("nan")])
def test_a_limit_outside_of_its_range_is_an_error(limit: float) -> None:
    with pytest.raises(UserError, match=r"^grader\.limit"):
        SentimentGrader(limit=limit)


@pytest.mark.usefixtures("vader")
def test_it_agrees_with_people_on_sentences_of_film_reviews(shared_data: Path) -> None:
    """Against the mean rating of twenty people, where they are sure; chance is one half."""
    path = shared_data / "sentiment" / "movie_snippets.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(float(row[1]), row[2]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][::10]
    grader = SentimentGrader()
    labels = [(rating > 0, grader("", text, {}).label) for rating, text in rows if abs(rating) > 1]
    decided = [(positive, label) for positive, label in labels if label != "neutral"]
    assert sum(positive == (label == "positive") for positive, label in decided) > 0.6 * len(decided) > 100
