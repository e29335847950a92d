"""Scores of a kept iteration: those of plain autograd, or those that the run made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kept_runs import FROZEN_LAKE, rounds_of

from ippo_lightning.analysis import read_round
from ippo_lightning.analysis.record_scores import score_records
from ippo_lightning.cli.main import main
from ippo_lightning.errors import UserError

TOLERANCE = 1e-4  # relative, in float32
ITERATION = 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose filter scores against the return of the buffer."""
    folder = tmp_path_factory.mktemp("scores") / "run"
    assert main([*FROZEN_LAKE, "--method", "iif", "--method", "keep_buffers", "--loop.run_dir", str(folder)]) == 0
    return folder


def test_scores_are_products_of_the_gradients_of_plain_autograd(run: Path) -> None:
    round_ = read_round(run, ITERATION)
    rounds = rounds_of(run, round_)
    found = score_records(rounds, round_, target="return")
    module, episodes = rounds.module, rounds.begin(round_).episodes
    actor = [parameter for name, parameter in module.named_parameters() if "actor" in name]
    returned = -(episodes.advantages * module.score(episodes).log_probs).mean()
    target = torch.autograd.grad(returned, actor)
    for row in range(0, len(episodes), 9):
        (loss,) = module.episode_losses(episodes.select([row]))
        gradient = torch.autograd.grad(loss, actor)
        expected = sum(float((one * other).sum()) for one, other in zip(gradient, target, strict=True))
        assert float(found.scores[row]) == pytest.approx(expected, rel=TOLERANCE, abs=1e-9)
    assert found.target == "return"
    assert bool(found.finite.all())


def test_the_scores_of_the_run_are_taken_if_there_are_any(run: Path) -> None:
    round_ = read_round(run, ITERATION)
    rounds = rounds_of(run, round_)
    kept = score_records(rounds, round_)
    assert kept.target == "run"
    assert "InfluenceFilter(DropNegatives)" in kept.words
    again = score_records(rounds, round_, target="return")
    torch.testing.assert_close(kept.scores, again.scores)


def test_a_target_that_does_not_fit_is_refused(run: Path) -> None:
    round_ = read_round(run, ITERATION)
    rounds = rounds_of(run, round_)
    with pytest.raises(UserError, match="AverageReward needs the reward of an episode"):
        score_records(rounds, round_, target="reward")
    without = replace(round_, history=())
    with pytest.raises(UserError, match="target: run, and nothing scored the records of iteration 1; use return"):
        score_records(rounds, without, target="run")
    assert score_records(rounds, without).target == "return"
