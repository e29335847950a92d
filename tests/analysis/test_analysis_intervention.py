"""An iteration trained again: with all records, without the negative ones, and without as many random ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from ippo_lightning.analysis import RepeatedRounds, kept_rounds, read_round
from ippo_lightning.analysis.intervention import (
    ALL,
    BEFORE,
    OWN,
    RANDOM,
    WITHOUT,
    Sizes,
    _ways,
    intervene,
    scores_of,
)
from ippo_lightning.analysis.test_numbers import TestNumbers
from ippo_lightning.cli.analyses import repeated_rounds
from ippo_lightning.cli.main import main
from ippo_lightning.errors import UserError
from ippo_lightning.records.kept_rounds import KeptRound

STEPS = 64
SIZES = Sizes(repeats=2, draws=3, seed=0, with_own=True)
RELATIVE_TOLERANCE = 1e-2
"""Scores of float32 passes against one gradient per row."""
SCORES_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three iterations that kept its buffers, and dropped negative records itself."""
    folder = tmp_path_factory.mktemp("intervention") / "run"
    words = ["fit", "--task", "frozenlake", "--method", "iif", "--method", "keep_buffers"]
    words += [f"--model.init_args.num_steps={STEPS}", "--model.init_args.update.num_epochs=2"]
    words += ["--loop.max_iterations=3", "--loop.evaluate_first=false", "--loop.evaluate_every_n_iterations=0"]
    assert main([*words, "--loop.test_at_end=false", "--loop.progress_bar=false", f"--loop.run_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def rounds(run: Path) -> Iterator[RepeatedRounds]:
    found = repeated_rounds(run, read_round(run, 0), ["intervene", str(run)])
    with closing(found.module):
        yield found


@pytest.fixture
def kept(run: Path) -> KeptRound:
    return read_round(run, kept_rounds(run)[1])


def test_scores_are_those_of_plain_autograd(rounds: RepeatedRounds, kept: KeptRound) -> None:
    scores, about = scores_of(rounds, kept)
    assert "ReturnOfBuffer" in about
    module, episodes = rounds.module, rounds.begin(kept).episodes
    parameters = list(module.parameters())

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, parts, strict=True)
        return torch.cat([(torch.zeros_like(value) if part is None else part).flatten() for value, part in pairs])

    log_probs = module.policy(episodes.observations, episodes.actions).log_probs
    target = gradient(-(episodes.advantages * log_probs).mean())
    advantages = (episodes.advantages - episodes.advantages.mean()) / (episodes.advantages.std(unbiased=False) + 1e-8)
    for row in (0, 7, STEPS - 1):
        ratio = (log_probs[row] - log_probs[row].detach()).exp()
        expected = gradient(-(ratio * advantages[row]).sum()) @ target
        assert float(scores[row]) == pytest.approx(float(expected), rel=RELATIVE_TOLERANCE, abs=SCORES_TOLERANCE)


def test_the_negatives_and_as_many_random_records_are_left_out(rounds: RepeatedRounds, kept: KeptRound) -> None:
    scores, _ = scores_of(rounds, kept)
    ways = _ways(kept, scores >= 0, SIZES)
    assert [len(ways[way]) for way in (ALL, WITHOUT, RANDOM, OWN)] == [2, 2, 3, 2]
    negatives = int((scores < 0).sum())
    assert 0 < negatives < STEPS
    assert bool((ways[ALL][0] == 1).all())
    assert torch.equal(ways[WITHOUT][0] == 0, scores < 0)
    assert [int((one == 0).sum()) for one in ways[RANDOM]] == [negatives] * 3
    assert not torch.equal(ways[RANDOM][0], ways[RANDOM][1])
    assert torch.equal(ways[OWN][0], kept.weights)
    assert 0 < int((kept.weights == 0).sum()) < negatives


def test_every_training_is_tested_on_the_same_episodes(run: Path, rounds: RepeatedRounds, kept: KeptRound) -> None:
    test = TestNumbers(rounds.loop, 6)
    found = intervene(rounds, kept, test=test, sizes=SIZES)
    shapes = {way: (len(values), len(values[0])) for way, values in found.returns.items()}
    assert shapes == {BEFORE: (1, 6), ALL: (2, 6), WITHOUT: (2, 6), RANDOM: (3, 6), OWN: (2, 6)}
    assert set(found.differences()) == {"without_negatives", "random_drop", "negatives_or_random", "as_the_run"}
    rounds.begin(kept)
    assert test.of(kept.iteration) == found.returns[BEFORE][0]
    # the first order is that of the run, with whose weights its own parameters come back
    rounds.train(kept)
    following = read_round(run, kept.iteration + 1).parameters
    assert all(torch.equal(value, following[name]) for name, value in rounds.module.trained_parameters().items())
    assert test.of(kept.iteration) == found.returns[OWN][0]
    assert found.steps[ALL] == 2
    again = intervene(rounds, kept, test=test, sizes=SIZES)
    assert again == found


def test_all_ways_are_trained_in_the_same_orders_and_the_first_is_that_of_the_run(
    rounds: RepeatedRounds, kept: KeptRound, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[int | None] = []
    train = rounds.train

    def watched(round_: KeptRound, weights: torch.Tensor, *, seed: int | None) -> Any:
        orders.append(seed)
        return train(round_, weights, seed=seed)

    monkeypatch.setattr(rounds, "train", watched)
    intervene(rounds, kept, test=TestNumbers(rounds.loop, 2), sizes=SIZES)
    second = orders[1]
    assert second is not None
    assert orders == [None, second, None, second, None, second, None, None, second]


def test_another_iteration_has_other_episodes_and_the_pairs_are_by_seed(rounds: RepeatedRounds) -> None:
    asked: list[list[int]] = []
    test = TestNumbers(rounds.loop, 4)

    class Spy:
        evaluates, evaluation_stream = "episodes", rounds.module.evaluation_stream

        def sample(self, batch: dict[str, range]) -> list[tuple[float, int]]:
            asked.append(list(batch["seeds"]))
            return [(float(seed), 1) for seed in batch["seeds"]]

    test.module = Spy()
    assert [test.of(iteration) for iteration in (0, 0, 1)] == asked
    assert asked[0] == asked[1]
    assert not set(asked[0]) & set(asked[2])


def test_a_test_of_one_episode_is_refused(rounds: RepeatedRounds) -> None:
    with pytest.raises(UserError, match="episodes: 1 is out of range"):
        TestNumbers(rounds.loop, 1)


def test_an_iteration_without_negative_records_is_left_out(
    rounds: RepeatedRounds, kept: KeptRound, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ippo_lightning.analysis.intervention.scores_of", lambda *_: (torch.ones(STEPS), "something"))
    found = intervene(rounds, kept, test=TestNumbers(rounds.loop, 2), sizes=SIZES)
    assert (found.skipped, found.returns) == ("no record has a negative score", {})
