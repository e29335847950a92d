"""Advantages against a double sum over deltas, with truncation, autoreset steps and padding."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ippo_lightning.maths import equal_rewards, gae, leave_one_out_advantages, response_gae

# fp64, sums of at most a dozen terms
EXACT = {"rtol": 1e-12, "atol": 1e-12}
GARBAGE = [math.nan, math.inf, 1e300, -7.0]


class Steps(NamedTuple):
    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    done: Tensor
    mask: Tensor


def random_steps(episodes: int = 5, steps: int = 9) -> Steps:
    rewards, values, next_values = torch.randn(3, episodes, steps, dtype=torch.float64)
    done = torch.rand(episodes, steps) < 0.3
    # some trajectories end for good, others are only cut
    terminated = done & (torch.rand(episodes, steps) < 0.5)
    return Steps(rewards, values, next_values, terminated, done, torch.rand(episodes, steps) < 0.8)


def by_double_sum(steps: Steps, gamma: float, gae_lambda: float) -> Tensor:
    """A_t = sum over k >= t of (gamma lambda)^(k - t) delta_k, up to the end of the trajectory; one row at a time."""
    advantages = torch.zeros_like(steps.rewards)
    for episode in range(len(steps.rewards)):
        counted = [t for t in range(steps.rewards.shape[1]) if steps.mask[episode, t]]
        for place, start in enumerate(counted):
            for exponent, t in enumerate(counted[place:]):
                follows = 0.0 if steps.terminated[episode, t] else steps.next_values[episode, t].item()
                delta = steps.rewards[episode, t].item() + gamma * follows - steps.values[episode, t].item()
                advantages[episode, start] += (gamma * gae_lambda) ** exponent * delta
                if steps.done[episode, t]:
                    break
    return advantages


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (0.99, 0.95), (0.5, 0.0), (0.0, 0.9)])
def test_advantages_are_the_discounted_sum_of_deltas(gamma: float, gae_lambda: float) -> None:
    steps = random_steps()
    found = gae(**steps._asdict(), gamma=gamma, gae_lambda=gae_lambda)
    torch.testing.assert_close(found, by_double_sum(steps, gamma, gae_lambda), **EXACT)


def test_by_hand() -> None:
    # gamma 0.5, lambda 0.5, so a trace of 0.25; three steps, the last one terminated.
    # delta_2 = 3 - 1 = 2, delta_1 = 0 + 0.5 * 1 - 4 = -3.5, delta_0 = 1 + 0.5 * 4 - 2 = 1
    # A_2 = 2, A_1 = -3.5 + 0.25 * 2 = -3, A_0 = 1 + 0.25 * -3 = 0.25
    last = torch.tensor([[False, False, True]])
    found = gae(
        rewards=torch.tensor([[1.0, 0.0, 3.0]]),
        values=torch.tensor([[2.0, 4.0, 1.0]]),
        next_values=torch.tensor([[4.0, 1.0, 99.0]]),
        terminated=last,
        done=last,
        mask=torch.ones(1, 3, dtype=torch.bool),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert found.tolist() == [[0.25, -3.0, 2.0]]


def test_termination_cuts_the_bootstrap_and_done_cuts_the_trace() -> None:
    steps = random_steps()
    base = gae(**steps._asdict(), gamma=0.9, gae_lambda=0.8)
    never, always = torch.zeros_like(steps.done), torch.ones_like(steps.done)
    one_step = gae(**steps._replace(done=always, terminated=never)._asdict(), gamma=0.9, gae_lambda=0.8)
    expected = steps.rewards + 0.9 * steps.next_values - steps.values
    torch.testing.assert_close(one_step, expected * steps.mask, **EXACT)
    ended = gae(**steps._replace(done=always, terminated=always)._asdict(), gamma=0.9, gae_lambda=0.8)
    torch.testing.assert_close(ended, (steps.rewards - steps.values) * steps.mask, **EXACT)
    for change in ({"done": never, "terminated": never}, {"done": always}):
        assert not torch.allclose(gae(**steps._replace(**change)._asdict(), gamma=0.9, gae_lambda=0.8), base)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_steps_off_the_mask_touch_no_others(garbage: float) -> None:
    steps = random_steps()
    hidden = {name: getattr(steps, name).masked_fill(~steps.mask, garbage) for name in Steps._fields[:3]}
    hidden |= {name: getattr(steps, name) ^ ~steps.mask for name in ("terminated", "done")}
    found = gae(**steps._replace(**hidden)._asdict(), gamma=0.9, gae_lambda=0.8)
    assert torch.equal(found, gae(**steps._asdict(), gamma=0.9, gae_lambda=0.8))
    assert found[~steps.mask].eq(0).all()


def test_a_step_off_the_mask_is_passed_over_as_if_it_were_not_there() -> None:
    steps = random_steps(episodes=1, steps=6)._replace(mask=torch.tensor([[True, True, False, True, False, True]]))
    shorter = Steps(*(tensor[:, steps.mask[0]] for tensor in steps))
    found = gae(**steps._asdict(), gamma=0.9, gae_lambda=0.8)[:, steps.mask[0]]
    torch.testing.assert_close(found, gae(**shorter._asdict(), gamma=0.9, gae_lambda=0.8), **EXACT)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_no_steps_give_no_advantages(shape: tuple[int, int]) -> None:
    assert gae(**random_steps(*shape)._asdict(), gamma=0.9, gae_lambda=0.8).shape == shape


def responses(lengths: tuple[int, ...] = (4, 1, 6, 0), truncated: tuple[int, ...] = (0, 1, 1, 0)) -> dict[str, Tensor]:
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    rewards, values = torch.randn(2, len(lengths), 6, dtype=torch.float64) * mask
    cut = torch.tensor(truncated, dtype=torch.bool)
    return {"rewards": rewards, "values": values, "mask": mask, "truncated": cut}


def rows_of(batch: dict[str, Tensor]) -> list[tuple[list[float], list[float], bool]]:
    """Rewards and values of each episode as short as the response is, and whether it was cut."""
    lengths = batch["mask"].sum(dim=1).tolist()
    rows = zip(batch["rewards"].tolist(), batch["values"].tolist(), batch["truncated"].tolist(), lengths, strict=True)
    return [(rewards[:length], values[:length], cut) for rewards, values, cut, length in rows]


def padded(rows: list[list[float]]) -> Tensor:
    return torch.tensor([row + [0.0] * (6 - len(row)) for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (0.9, 0.8)])
def test_a_response_is_one_trajectory_that_ends_at_its_last_token(
    gamma: float, gae_lambda: float, bootstrap: bool
) -> None:
    batch = responses()
    found, returns = response_gae(**batch, gamma=gamma, gae_lambda=gae_lambda, bootstrap_truncated=bootstrap)
    rows = []
    for rewards, values, cut in rows_of(batch):
        follows = [*values[1:], values[-1] if bootstrap and cut else 0.0] if values else []
        deltas = [r + gamma * n - v for r, n, v in zip(rewards, follows, values, strict=True)]
        places, decay = range(len(deltas)), gamma * gae_lambda
        rows.append([sum(decay ** (k - t) * deltas[k] for k in places[t:]) for t in places])
    torch.testing.assert_close(found, padded(rows), **EXACT)
    torch.testing.assert_close(returns, found + batch["values"], **EXACT)


def test_with_lambda_1_the_returns_are_the_discounted_rewards_to_come() -> None:
    batch = responses()
    _, returns = response_gae(**batch, gamma=0.9, gae_lambda=1.0)
    expected = [
        [sum(0.9 ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]
        for rewards, _, _ in rows_of(batch)
    ]
    torch.testing.assert_close(returns, padded(expected), **EXACT)


def test_with_lambda_0_the_advantages_are_one_step_errors() -> None:
    batch = responses()
    advantages, _ = response_gae(**batch, gamma=0.9, gae_lambda=0.0)
    expected = [
        [rewards[t] + 0.9 * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t in range(len(rewards))]
        for rewards, values, _ in rows_of(batch)
    ]
    torch.testing.assert_close(advantages, padded(expected), **EXACT)


def test_only_a_cut_response_bootstraps_and_only_when_asked_to() -> None:
    batch = responses()
    plain, _ = response_gae(**batch, gamma=1.0, gae_lambda=1.0)
    bootstrapped, _ = response_gae(**batch, gamma=1.0, gae_lambda=1.0, bootstrap_truncated=True)
    # with gamma = lambda = 1 every token of a cut response gains the value at its last token
    gain = torch.tensor([0.0, batch["values"][1, 0], batch["values"][2, 5], 0.0], dtype=torch.float64)
    torch.testing.assert_close(bootstrapped - plain, gain[:, None] * batch["mask"], **EXACT)
    assert gain.abs().max() > 0
    batch["truncated"] = torch.zeros(4, dtype=torch.bool)
    never_cut, _ = response_gae(**batch, gamma=1.0, gae_lambda=1.0, bootstrap_truncated=True)
    assert torch.equal(never_cut, plain)


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_of_responses_never_matters(garbage: float, bootstrap: bool) -> None:
    batch = responses()
    filled = batch | {name: batch[name].masked_fill(~batch["mask"], garbage) for name in ("rewards", "values")}
    settings = {"gamma": 0.9, "gae_lambda": 0.8, "bootstrap_truncated": bootstrap}
    found, expected = response_gae(**filled, **settings), response_gae(**batch, **settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(tensor[~batch["mask"]].eq(0).all() for tensor in found)


@given(extra=st.integers(0, 4), bootstrap=st.booleans())
def test_more_padding_columns_change_nothing(extra: int, bootstrap: bool) -> None:
    batch = responses()
    wider = {
        name: torch.nn.functional.pad(tensor, (0, extra)) if tensor.ndim == 2 else tensor
        for name, tensor in batch.items()
    }
    settings = {"gamma": 0.9, "gae_lambda": 0.8, "bootstrap_truncated": bootstrap}
    for found, expected in zip(response_gae(**wider, **settings), response_gae(**batch, **settings), strict=True):
        assert torch.equal(found[:, :6], expected)
        assert found[:, 6:].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_that_of_the_rewards(dtype: torch.dtype) -> None:
    batch = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in responses().items()}
    assert [tensor.dtype for tensor in response_gae(**batch, gamma=0.9, gae_lambda=0.8)] == [dtype, dtype]


def test_each_reward_is_compared_with_the_others_of_its_group() -> None:
    # groups 7: 1, 2, 6 and 2: 3, 5 and 9: 4, numbered with gaps and mixed
    rewards = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 6.0], dtype=torch.float64)
    group = torch.tensor([7, 2, 7, 2, 9, 7])
    found = leave_one_out_advantages(rewards=rewards, group=group)
    # 1 - (2 + 6) / 2, 3 - 5, 2 - (1 + 6) / 2, 5 - 3, alone, 6 - (1 + 2) / 2
    assert found.tolist() == pytest.approx([-3.0, -2.0, -1.5, 2.0, 0.0, 4.5], rel=1e-12)


def test_leaving_one_out_is_the_deviation_from_the_mean_times_n_over_n_minus_1() -> None:
    rewards = torch.randn(12, dtype=torch.float64)
    found = leave_one_out_advantages(rewards=rewards, group=torch.arange(12) // 4)
    groups = rewards.view(3, 4)
    expected = (groups - groups.mean(dim=1, keepdim=True)) * 4 / 3
    torch.testing.assert_close(found, expected.flatten(), rtol=1e-12, atol=1e-12)


def test_huge_rewards_are_compared_without_overflow() -> None:
    found = leave_one_out_advantages(rewards=torch.tensor([3e38, 3e38, -3e38]), group=torch.zeros(3, dtype=torch.long))
    assert found[0].item() == pytest.approx(3e38, rel=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("rewards", "group", "counts"),
    [
        # equal, different, and one alone, which is no group
        ([0.1, 0.1, 0.0, 1.0, 5.0], [4, 4, 0, 0, 9], (1, 2)),
        ([0.1, 0.1, 0.1], [1, 1, 1], (1, 1)),
        ([1.0], [0], (0, 0)),
        ([], [], (0, 0)),
    ],
)
def test_groups_of_equal_rewards_are_counted(rewards: list[float], group: list[int], counts: tuple[int, int]) -> None:
    equal, total = equal_rewards(rewards=torch.tensor(rewards), group=torch.tensor(group, dtype=torch.long))
    assert (int(equal), int(total)) == counts
