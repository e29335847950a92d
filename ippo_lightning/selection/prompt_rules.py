"""Prompt rules: which prompts of a batch are sampled, before there is any response."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError, require_range
from ippo_lightning.records.digests import batch_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTable:
    """The prompts of this rank that a rule chooses from."""

    prompts: Sequence[str]
    """[prompts] the texts."""
    examples: Sequence[Mapping[str, Any]]
    """[prompts] what the data module knows about each."""
    keys: Sequence[int]
    """[prompts] the number of each prompt's `PromptRule.key`, equal on all ranks and after a resume."""
    num_kept: int
    """How many prompts are sampled, between 1 and their number."""
    generator: torch.Generator
    """Random numbers of this iteration and rank, the same ones after a resume."""
    predictions: Tensor | None = None
    """[prompts] float64, see `values`."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def values(self) -> Tensor:
        """[prompts] float64, the critic's value of each prompt's last token, in units of the reward."""
        if self.predictions is None:
            raise UserError("prompt rule: it reads table.values, which is not in its needs; add 'values' to them")
        return self.predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRows:
    """What a rollout has shown: its rows of all ranks, in the order of the ranks."""

    keys: Sequence[int]
    """[rows] the number of each prompt's `PromptRule.key`."""
    rewards: Tensor
    """[rows] float64, outcome rewards."""
    advantages: Tensor
    """[rows] float64, mean advantage over the steps that count."""


class PromptRule(ABC):
    """Decides which prompts of a batch are sampled. A subclass writes `ranking`; the rest has defaults.

    Each rank ranks prompts of its own. What a rule learns from is that of all ranks, so that its state is the same on
    each of them.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What the rule reads besides texts and examples: "values", or nothing."""
        return frozenset()

    @property
    def name(self) -> str:
        """What plans, logs and messages call the rule."""
        return type(self).__name__

    def key(self, prompt: str, example: Mapping[str, Any]) -> str:
        """Return what the rule counts as one: by default the prompt.

        Args:
            prompt: a text of the batch.
            example: what the data module knows about it.
        """
        return prompt

    @abstractmethod
    def ranking(self, table: PromptTable) -> Tensor:
        """Return a number per prompt, shape [prompts]: those with the highest are sampled, of equal ones the first."""

    def learn(self, rows: SampledRows) -> None:  # noqa: B027 - most rules remember nothing
        """Remember what the rule needs of a rollout; called on all ranks with the same rows."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - see `state_dict`
        """Continue from what `state_dict` returned."""


def key_number(key: str) -> int:
    """Return the number of a key: the same in every process, and exact in float64."""
    return batch_digest(key) >> 4


@dataclass(frozen=True, kw_only=True)
class RandomPrompts(PromptRule):
    """Sample random prompts: the control that shows whether a rule is better than chance."""

    def ranking(self, table: PromptTable) -> Tensor:
        """Return random numbers."""
        return torch.rand(len(table), generator=table.generator, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class IntermediateDifficulty(PromptRule):
    """Sample the prompts whose predicted reward is nearest to a target: neither solved nor out of reach (PCL).

    The prediction is the critic's value of the last prompt token. With a reward of 0 or 1, it is the probability of a
    right response, less the expected KL penalty.
    Source: arXiv 2510.01135 (PCL), which trains a value model of its own on the mean reward of each prompt.

    Args:
        target: in units of the reward.

    Raises:
        UserError: the target is no finite number.
    """

    target: float = 0.5

    def __post_init__(self) -> None:
        require_range("rule.target", self.target, above=-math.inf, below=math.inf)

    @property
    def needs(self) -> frozenset[str]:
        """Values."""
        return frozenset({"values"})

    def ranking(self, table: PromptTable) -> Tensor:
        """Return minus the distance of each value from the target."""
        return -(table.values - self.target).abs()


@dataclass(kw_only=True)
class SourceBandit(PromptRule):
    """Draw the source of each prompt by what there is still to learn from it (DUMP).

    A source has the value mean|A| + sqrt(2 ln(N + 1) / (n + 1)); A is the mean advantage of a response, over the last
    `window` responses to prompts of the source, n the number of all its responses, and N that of all sources. The
    probabilities are the softmax of the values divided by `temperature`, over the sources of which the batch has
    prompts left.
    Source: arXiv 2504.09710 (DUMP), and their released code for the window.

    Args:
        source: the key of a prompt's source in its example.
        temperature: of the softmax, > 0.
        window: number of responses in the mean, >= 1.

    Raises:
        UserError: a number out of its range; while sampling, an example without the key.
    """

    source: str
    temperature: float = 0.1
    window: int = 300
    recent: dict[int, list[float]] = field(default_factory=dict, init=False)
    """Source to the last abs(A), oldest first."""
    counts: Counter[int] = field(default_factory=Counter, init=False)
    """Source to its number of responses."""

    def __post_init__(self) -> None:
        require_range("rule.temperature", self.temperature, above=0, below=math.inf)
        require_range("rule.window", self.window, at_least=1, integer=True)

    def key(self, prompt: str, example: Mapping[str, Any]) -> str:
        """Return the prompt's source."""
        if self.source not in example:
            found = ", ".join(sorted(map(str, example)))[:80] or "no key"
            raise UserError(f"rule.source: an example has no {self.source!r}; expected one of its keys: {found}")
        return str(example[self.source])

    def value(self, source: int) -> float:
        """Return the value of a source.

        Args:
            source: from `PromptTable.keys`.
        """
        recent = self.recent.get(source, [])
        bonus = math.sqrt(2 * math.log(self.counts.total() + 1) / (self.counts[source] + 1))
        return math.fsum(recent) / max(len(recent), 1) + bonus

    def ranking(self, table: PromptTable) -> Tensor:
        """Return minus the turn in which each prompt is drawn; within a source, the first prompts are drawn first."""
        ranking = torch.full((len(table),), -torch.inf, dtype=torch.float64)
        left = list(table.keys)
        for turn in range(table.num_kept):
            # In an order that does not depend on the process; a logit less the log of an exponential draw is largest
            # with the probability of the softmax, also where that underflows.
            sources = sorted(set(left) - {_DRAWN})
            logits = torch.tensor([self.value(source) for source in sources], dtype=torch.float64) / self.temperature
            noise = torch.empty_like(logits).exponential_(generator=table.generator)
            place = left.index(sources[int((logits - noise.log()).argmax())])
            ranking[place], left[place] = -turn, _DRAWN
        return ranking

    def learn(self, rows: SampledRows) -> None:
        """Add the rows of a rollout to their sources."""
        self.counts.update(rows.keys)
        for source, advantage in zip(rows.keys, rows.advantages.abs().tolist(), strict=True):
            self.recent[source] = [*self.recent.get(source, []), advantage][-self.window :]

    def state_dict(self) -> dict[str, Any]:
        """Return windows and counts."""
        return {"recent": {**self.recent}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from windows and counts."""
        self.recent, self.counts = {**state["recent"]}, Counter(state["counts"])


_DRAWN = -1
"""In the place of a key, which is at least 0."""
