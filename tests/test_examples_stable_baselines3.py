"""The influence filter on a PPO of stable-baselines3, where that is installed."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")

from stable_baselines3 import PPO

EXAMPLE = Path(__file__).parents[1] / "examples" / "filter_for_stable_baselines3.py"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLE)))


def ppo(environment: str, **given: Any) -> PPO:
    return PPO("MlpPolicy", environment, n_steps=48, batch_size=16, n_epochs=2, seed=3, device="cpu", **given)


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_scores_are_products_of_gradients_of_single_records(example: SimpleNamespace, environment: str) -> None:
    """Against autograd, one record at a time, with the formulas of the paper written out."""
    model = ppo(environment, rollout_buffer_class=example.FilteredRolloutBuffer)
    model.learn(48)
    found = example.scores_of(model)

    observations, actions, _, _, advantages, _ = model.rollout_buffer._get_samples(np.arange(48))
    if environment != "Pendulum-v1":
        actions = actions.long().flatten()
    chunks = advantages.reshape(3, 16)
    normalised = ((chunks - chunks.mean(1, keepdim=True)) / chunks.std(1, keepdim=True)).flatten()
    layers = [weight for name, weight in model.policy.named_parameters() if name != "log_std"]

    def gradient(factors: torch.Tensor, rows: slice) -> torch.Tensor:
        _, log_probs, _ = model.policy.evaluate_actions(observations[rows], actions[rows])
        parts = torch.autograd.grad((log_probs * factors[rows]).sum(), layers, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None]).double()

    target = gradient(advantages / 48, slice(None))
    expected = torch.stack([gradient(normalised, slice(row, row + 1)) @ target for row in range(48)])
    assert (found.double() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert bool((expected < 0).any())


def test_the_update_reads_the_kept_records_only(example: SimpleNamespace) -> None:
    model = ppo("CartPole-v1", rollout_buffer_class=example.FilteredRolloutBuffer)
    read: list[torch.Tensor] = []
    samples = model.rollout_buffer._get_samples

    def watched(rows: np.ndarray) -> Any:
        read.append(torch.as_tensor(rows))
        return samples(rows)

    model.rollout_buffer._get_samples = watched
    model.learn(48, callback=example.InfluenceFilter(1.0))
    (scored, *minibatches), kept = read, model.rollout_buffer.kept
    assert len(scored) == 48
    assert 0 < len(kept) < 48
    assert torch.cat(minibatches).sort().values.tolist() == sorted([*kept, *kept])  # two epochs


def test_without_a_dropped_record_the_run_is_that_of_stable_baselines(example: SimpleNamespace) -> None:
    """Bit for bit, so what the filter changes is what it drops."""
    plain = ppo("CartPole-v1").learn(96)
    filtered = ppo("CartPole-v1", rollout_buffer_class=example.FilteredRolloutBuffer)
    filtered.learn(96, callback=example.InfluenceFilter(0.0))
    for name, weight in plain.policy.state_dict().items():
        assert torch.equal(weight, filtered.policy.state_dict()[name]), name
