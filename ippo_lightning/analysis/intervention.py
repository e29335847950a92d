"""One iteration trained again without its negative records, without as many random ones, and with all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ippo_lightning.analysis.record_scores import TargetName, score_records
from ippo_lightning.analysis.repeated import RepeatedRounds
from ippo_lightning.analysis.test_numbers import TestNumbers
from ippo_lightning.analysis.training_differences import Estimate, mean_difference
from ippo_lightning.maths import keep_random
from ippo_lightning.records import ControlEpisodes
from ippo_lightning.records.kept_rounds import KeptRound

ALL, WITHOUT, RANDOM, OWN, BEFORE = "all", "without_negatives", "random_drop", "as_the_run", "before"
"""Ways to train; the last one trains nothing."""
COMPARED: Mapping[str, tuple[str, str]] = {
    "without_negatives": (WITHOUT, ALL), "random_drop": (RANDOM, ALL), "negatives_or_random": (WITHOUT, RANDOM),
    "as_the_run": (OWN, ALL),
}  # fmt: skip
"""By name: the way, and the one that it is compared with."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How often an iteration is trained again.

    Args:
        repeats: orders of minibatches for each way to train, at least 2; the first one is that of the run.
        draws: random sets of dropped records, at least 2; each is trained in one of these orders.
        seed: of orders and draws.
        with_own: also with the weights of the run, if it dropped or weighted records.
    """

    repeats: int
    draws: int
    seed: int
    with_own: bool


@dataclass(frozen=True, kw_only=True)
class Intervened:
    """The outcome of one iteration."""

    iteration: int
    records: int
    negatives: int
    scores_of: str
    """What the scores are about, in words."""
    skipped: str
    """Why it was not trained again, in words; empty if it was."""
    steps: Mapping[str, int]
    """Optimizer steps of each way to train."""
    returns: Mapping[str, list[list[float]]]
    """By way to train: shape [trainings, episodes]."""

    def means(self) -> dict[str, float]:
        """Return the mean return of each way to train."""
        return {way: float(np.mean(values)) for way, values in self.returns.items()}

    def differences(self) -> dict[str, Estimate]:
        """Return the differences of `COMPARED` that there are data for."""
        return {
            name: mean_difference(np.array(self.returns[way]), minus=np.array(self.returns[other]))
            for name, (way, other) in COMPARED.items()
            if way in self.returns and other in self.returns
        }


def intervene(rounds: RepeatedRounds, round_: KeptRound, *, test: TestNumbers, sizes: Sizes) -> Intervened:
    """Score the records of an iteration, train it again in each way from its beginning, and test each policy.

    Args:
        rounds: of the run.
        round_: of the iteration.
        test: of the same loop.
        sizes: how often.
    """
    scores, about = scores_of(rounds, round_)
    kept = ~(scores < 0)  # also a row whose score is not finite
    found: dict[str, Any] = {
        "iteration": round_.iteration, "records": len(kept), "negatives": int((~kept).sum()), "scores_of": about,
    }  # fmt: skip
    reason = _reason_to_skip(round_, kept)
    if reason:
        return Intervened(**found, skipped=reason, steps={}, returns={})
    rounds.begin(round_)
    returns, steps = {BEFORE: [test.of(round_.iteration)]}, {}
    for way, weights in _ways(round_, kept, sizes).items():
        returns[way] = []
        for number, one in enumerate(weights):
            order = number % sizes.repeats
            seed = None if order == 0 else _seed(sizes.seed, round_.iteration, 0, order)
            steps[way] = rounds.train(round_, one, seed=seed).optimizer_steps
            returns[way].append(test.of(round_.iteration))
    return Intervened(**found, skipped="", steps=steps, returns=returns)


def scores_of(rounds: RepeatedRounds, round_: KeptRound) -> tuple[Tensor, str]:
    """Return the scores of an iteration's records on the CPU, shape [records], and what they are about.

    In environments they are about the return of the buffer, f_return. Those of responses are the ones of the run, or
    without any about the average reward.

    Args:
        rounds: of the run.
        round_: of the iteration.
    """
    # The scores of the run's own filter may be about another target than the return.
    target: TargetName = "return" if isinstance(round_.episodes, ControlEpisodes) else "auto"
    found = score_records(rounds, round_, target=target)
    return found.scores.float(), found.words


def _reason_to_skip(round_: KeptRound, kept: Tensor) -> str:
    if not round_.trains_policy:
        return "the critic learned alone"
    if bool(kept.all()):
        return "no record has a negative score"
    return "" if bool(kept.any()) else "every record has a negative score"


def _ways(round_: KeptRound, kept: Tensor, sizes: Sizes) -> dict[str, list[Tensor]]:
    """Return the weights of each training, by way."""
    ones, without = torch.ones(len(kept)), kept.float()
    ways = {ALL: [ones] * sizes.repeats, WITHOUT: [without] * sizes.repeats}
    ways[RANDOM] = [_random(kept, seed=_seed(sizes.seed, round_.iteration, 1, draw)) for draw in range(sizes.draws)]
    own = round_.weights.cpu()
    if sizes.with_own and bool((own != 1).any()) and bool((own > 0).any()):
        ways[OWN] = [own] * sizes.repeats
    device = round_.episodes.device
    return {way: [one.to(device) for one in weights] for way, weights in ways.items()}


def _random(kept: Tensor, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return keep_random(num_episodes=len(kept), num_kept=int(kept.sum()), generator=generator).float()


def _seed(*numbers: int) -> int:
    # Neither is a sum of the others: neighbouring seeds, iterations and draws share none.
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
