"""A judge of sentiment that is no model: the lexicon and rules of VADER."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.tasks.grades import Grade


class SentimentGrader:
    """Grades a response as right if VADER finds it positive, and labels it `positive`, `neutral` or `negative`.

    It knows English words and no context, so it makes other errors than a classifier does. If a run is rewarded by a
    classifier, it shows whether the policy has learned the sentiment or the errors of the classifier.
    Source: Hutto and Gilbert 2014, with their limits of 0.05 and -0.05 of the compound value.

    Args:
        limit: compound value, in (0, 1), from which on a text is positive, and below whose negative it is negative.
        with_prompt: judge prompt and response together; false for the response alone, which is what the policy wrote.

    Raises:
        UserError: the limit is out of its range, or vaderSentiment is not installed.
    """

    def __init__(self, *, limit: float = 0.05, with_prompt: bool = False) -> None:
        require_range("grader.limit", limit, above=0, below=1)
        self.limit = limit
        self.with_prompt = with_prompt
        self._analyzer = _analyzer()

    def __call__(self, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        """Return whether the text is positive, and its label.

        Args:
            prompt: what the policy read.
            response: any text; its first 1000 characters count.
            example: ignored.
        """
        text = (prompt + response if self.with_prompt else response)[:_MAX_CHARACTERS]
        value = float(self._analyzer.polarity_scores(text)["compound"])
        label = "positive" if value >= self.limit else "negative" if value <= -self.limit else "neutral"
        return Grade(label == "positive", label)


_MAX_CHARACTERS = 1000
"""The time of VADER's rules grows with the square of the number of words."""


def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise UserError(
            "grader: SentimentGrader needs the package vaderSentiment; use `pip install 'ippo-lightning[sentiment]'`"
        ) from error
    return SentimentIntensityAnalyzer()
