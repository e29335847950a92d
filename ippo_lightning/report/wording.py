"""The same numbers in the words of environments: what is a token of a response there is one action of the policy."""

from __future__ import annotations

import re
from collections.abc import Callable

from ippo_lightning.report.records import Comparison

# Whole phrases, the longer ones first: "episode" alone is an episode in both worlds, and a row of an update is none.
_IN_ENVIRONMENTS = {
    "nats per token": "nats per action",
    "Fraction of the tokens": "Fraction of the actions",
    "Tokens trained: response tokens in optimizer steps": "Transitions trained: those in optimizer steps",
    "Tokens trained": "Transitions trained",
    "Episodes kept for the update": "Transitions kept for the update",
    "Fraction of the sampled episodes": "Fraction of the sampled transitions",
    "sampled episodes": "sampled transitions",
    "on the validation prompts": "of the validation episodes",
    "Fraction of the episodes": "Fraction of the transitions",
    "this fraction of the episodes": "this fraction of the transitions",
    "score of an episode": "score of a transition",
    "An episode with weight": "A transition with weight",
    "the loss on the good demonstrations": "the loss that the scores are measured by",
    "Effective sample size, episodes": "Effective sample size, transitions",
    "equally weighted episodes": "equally weighted transitions",
    "fraction of the kept episodes": "fraction of the kept transitions",
    "over the kept episodes": "over the kept transitions",
    "Few episodes are left: sample more per prompt": "Few transitions are left: take more steps",
    "A few episodes have": "A few transitions have",
    "Episodes whose sign": "Transitions whose sign",
    "Episodes with numbers": "Transitions with numbers",
    "Episodes left out": "Transitions left out",
    "time to score and select episodes": "time to score and select transitions",
    "of its episodes": "of its transitions",
    "the samples": "the actions",
    "The samples": "The actions",
    "Two halves of the demonstrations give": "Two halves of what the scores are measured by give",
    "two halves of the demonstrations": "two halves of what the scores are measured by",
    "groups of demonstrations": "groups of what the scores are measured by",
    "Use more demonstrations, or demonstrations of one kind": "Measure by more steps or episodes",
    "Use more demonstrations, or drop": "Measure by more steps or episodes, or drop",
    "lower entropy_coef or the KL coefficient": "lower entropy_coef",
    "raise entropy_coef or the KL coefficient": "raise entropy_coef",
    "look at the reward and the KL": "look at the returns",
}
_PHRASE = re.compile("|".join(re.escape(phrase) for phrase in _IN_ENVIRONMENTS))


def wording(comparison: Comparison) -> Callable[[str], str]:
    """Return what turns this library's own words into those of a report; texts of users never pass through it.

    Args:
        comparison: the words change if all its runs are in environments.
    """
    if not comparison.is_control:
        return lambda text: text
    return lambda text: _PHRASE.sub(lambda found: _IN_ENVIRONMENTS[found[0]], text)
