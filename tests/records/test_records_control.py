"""Fragments of environments become rows of one step each, and keep what each step knew."""

from __future__ import annotations

import pytest
import torch

from ippo_lightning.records import ControlEpisodes


def fragments() -> ControlEpisodes:
    """Two environments, three steps; the second step of the second one is a reset and does not count."""
    shape = (2, 3)
    steps = torch.arange(6.0).reshape(shape)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    done = torch.tensor([[False, False, True], [True, False, False]])
    return ControlEpisodes(
        mask=mask,
        log_probs=-steps,
        ref_log_probs=torch.zeros(shape),
        values=10 + steps,
        rewards=steps,
        advantages=100 + steps,
        returns=200 + steps,
        outcome_rewards=steps.sum(dim=1),
        truncated=torch.tensor([False, False]),
        group=torch.tensor([0, 1]),
        observations=torch.stack([steps, -steps], dim=2),
        actions=torch.tensor([[0, 1, 0], [1, 1, 0]]),
        next_values=20 + steps,
        terminated=torch.tensor([[False, False, False], [True, False, False]]),
        done=done,
    )


def test_transitions_are_the_steps_that_count_one_per_row() -> None:
    rows = fragments().transitions()
    assert len(rows) == 5
    assert rows.mask.all()
    assert rows.advantages.flatten().tolist() == [100.0, 101.0, 102.0, 103.0, 105.0]
    assert rows.observations.tolist() == [[[0, 0]], [[1, -1]], [[2, -2]], [[3, -3]], [[5, -5]]]
    assert rows.actions.flatten().tolist() == [0, 1, 0, 1, 0]
    assert rows.group.tolist() == [0, 0, 0, 1, 1]
    assert rows.outcome_rewards.tolist() == [0.0, 1.0, 2.0, 3.0, 5.0]
    assert rows.truncated.tolist() == [False, False, True, False, False], "done, but not terminated"
    assert rows.cost().tolist() == [1] * 5
    assert rows.describe(4) == "environment 1"


def test_fragments_are_cut_and_joined_with_their_features() -> None:
    both = ControlEpisodes.concat([fragments().select([1]), fragments().select([0])])
    assert both.observations.shape == (2, 3, 2)
    assert both.widened({"steps": 5}).observations.shape == (2, 5, 2)
    assert both.widened({"steps": 5}).done[:, 3:].all(), "padding ends every trace"


def test_features_may_not_be_missing() -> None:
    with pytest.raises(ValueError, match=r"ControlEpisodes\.observations has shape \(2, 2, 2\), expected \(2, 3\)"):
        fragments().evolve(observations=torch.zeros(2, 2, 2))
