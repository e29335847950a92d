"""Estimators against plain loops: responses with holes, fragments of environments, groups of responses."""

from __future__ import annotations

import statistics

import pytest
import torch
import two_ranks_select
from small_episodes import make_episodes
from torch import Tensor

from ippo_lightning.algorithms import GAE, GlobalBaseline, GroupBaseline, LeaveOneOut
from ippo_lightning.errors import UserError
from ippo_lightning.records import TextEpisodes

# fp64, sums of a few terms
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def dialogues() -> TextEpisodes:
    """Three rows in fp64; the first two have tokens of a tool between the policy's own."""
    episodes = make_episodes([1, 1, 1], [6, 5, 3])
    mask = episodes.mask.clone()
    mask[0, 2:4] = mask[1, 0] = False
    shape = mask.shape
    return episodes.evolve(
        mask=mask,
        rewards=torch.randn(shape, dtype=torch.float64),
        values=torch.randn(shape, dtype=torch.float64),
        truncated=torch.tensor([True, False, True]),
    )


def by_row(episodes: TextEpisodes, row: int, estimator: GAE) -> list[float]:
    """A_t = sum over later counted steps of (gamma lambda)^k delta, written as a double loop."""
    counted = episodes.mask[row].nonzero().flatten().tolist()
    rewards, values = episodes.rewards[row].tolist(), episodes.values[row].tolist()
    deltas = []
    for place, step in enumerate(counted):
        following = values[counted[place + 1]] if place + 1 < len(counted) else 0.0
        if place + 1 == len(counted) and estimator.bootstrap_truncated and bool(episodes.truncated[row]):
            following = values[step]
        deltas.append(rewards[step] + estimator.gamma * following - values[step])
    decay = estimator.gamma * estimator.gae_lambda
    return [sum(decay ** (k - t) * delta for k, delta in enumerate(deltas[t:], start=t)) for t in range(len(deltas))]


@pytest.mark.parametrize("bootstrap", [False, True])
def test_what_stands_between_the_policys_own_tokens_is_passed_over(bootstrap: bool) -> None:
    episodes = dialogues()
    estimator = GAE(gamma=0.9, gae_lambda=0.8, bootstrap_truncated=bootstrap, whiten=False)
    found = estimator(episodes)
    for row in range(len(episodes)):
        mask = episodes.mask[row]
        expected = torch.tensor(by_row(episodes, row, estimator), dtype=torch.float64)
        torch.testing.assert_close(found.advantages[row][mask], expected, **EXACT)
        torch.testing.assert_close(found.returns[row][mask], expected + episodes.values[row][mask], **EXACT)
    assert found.advantages[~episodes.mask].eq(0).all()


def test_policy_and_critic_have_a_trace_decay_each() -> None:
    episodes = make_episodes([1], [3]).evolve(
        rewards=torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64),
        values=torch.tensor([[0.5, 0.25, 0.75]], dtype=torch.float64),
        truncated=torch.tensor([False]),
    )
    found = GAE(gae_lambda=0.5, value_lambda=1.0, whiten=False)(episodes)
    # the errors of one step are -1/4, 1/2 and 1/4
    assert found.advantages.tolist() == [[0.0625, 0.625, 0.25]]
    assert found.returns.tolist() == [[1.0, 1.0, 1.0]]


def by_recursion(rewards: list[float], values: list[float], last: float, *, gamma: float, decay: float) -> list[float]:
    """Returns without advantages: G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1})."""
    returns, following, to_come = [], last, last
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        to_come = reward + gamma * ((1 - decay) * following + decay * to_come)
        following = value
        returns.append(to_come)
    return returns[::-1]


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("value_lambda", [None, 0.0, 0.6, 0.8, 1.0])
def test_the_critics_decay_is_that_of_its_returns_alone(value_lambda: float | None, whiten: bool) -> None:
    episodes = dialogues()
    settings = {"gamma": 0.9, "gae_lambda": 0.8, "whiten": whiten, "bootstrap_truncated": True}
    found, plain = GAE(value_lambda=value_lambda, **settings)(episodes), GAE(**settings)(episodes)
    assert torch.equal(found.advantages, plain.advantages)
    assert torch.equal(found.returns, plain.returns) == (value_lambda in (None, 0.8))
    for row in range(len(episodes)):
        mask = episodes.mask[row]
        values = episodes.values[row][mask].tolist()
        last = values[-1] if bool(episodes.truncated[row]) else 0.0
        decay = 0.8 if value_lambda is None else value_lambda
        expected = by_recursion(episodes.rewards[row][mask].tolist(), values, last, gamma=0.9, decay=decay)
        torch.testing.assert_close(found.returns[row][mask].tolist(), expected, **EXACT)


def test_a_decay_of_the_critic_ends_where_an_episode_of_an_environment_does() -> None:
    shape = (1, 4)
    rewards, values, following = torch.randn(3, *shape, dtype=torch.float64)
    ends, cut = torch.tensor([[False, True, False, False]]), torch.tensor([[False, False, False, True]])
    episodes = two_ranks_select.rollout([0]).select([0]).evolve(
        mask=torch.ones(shape, dtype=torch.bool), rewards=rewards, values=values, next_values=following,
        terminated=ends, done=ends | cut,
        **dict.fromkeys(("log_probs", "ref_log_probs", "advantages", "returns", "actions"), rewards),
        observations=torch.zeros(*shape, 4),
    )  # fmt: skip
    found = GAE(gamma=0.9, gae_lambda=0.5, value_lambda=1.0, whiten=False)(episodes).returns[0].tolist()
    first, second, third, fourth = rewards[0].tolist()
    of_last = fourth + 0.9 * float(following[0, 3])
    expected = [first + 0.9 * second, second, third + 0.9 * of_last, of_last]
    # the value of the next state stands beside it, and a trace of 1 passes the critic's own error on
    errors = [0.9 * (float(following[0, step]) - float(values[0, step + 1])) for step in (0, 2)]
    expected[0], expected[2] = expected[0] + errors[0], expected[2] + errors[1]
    torch.testing.assert_close(found, expected, **EXACT)


def test_whitened_advantages_have_mean_0_and_variance_1_over_the_steps_that_count() -> None:
    episodes = dialogues()
    kept = GAE()(episodes).advantages[episodes.mask]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-12)
    assert float(kept.square().mean()) == pytest.approx(1, rel=1e-6)  # 1e-8 is added to the variance


def groups() -> tuple[TextEpisodes, list[float]]:
    """Five rows in two groups, with rewards 1, 2, 6 and 3, 5; a hole has a reward that must not count."""
    totals = [1.0, 2.0, 6.0, 3.0, 5.0]
    episodes = make_episodes([1] * 5, [2] * 5)
    rewards = torch.zeros(5, 2, dtype=torch.float64)
    rewards[:, 1] = torch.tensor(totals)
    mask = episodes.mask.clone()
    mask[0, 0] = False
    rewards[0, 0] = 99.0
    return episodes.evolve(rewards=rewards, mask=mask, group=torch.tensor([7, 7, 7, 2, 2])), totals


def expected_advantages(totals: list[float], scale: str) -> Tensor:
    parts = [totals[:3], totals[3:]]
    spread = {"none": lambda part: 1.0, "group": lambda part: statistics.stdev(part) + 1e-4,
              "batch": lambda part: statistics.stdev(totals) + 1e-4}[scale]  # fmt: skip
    values = [(total - statistics.fmean(part)) / spread(part) for part in parts for total in part]
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_is_its_own_baseline(scale: str) -> None:
    episodes, totals = groups()
    found = GroupBaseline(scale=scale)(episodes)
    per_row = expected_advantages(totals, scale)
    torch.testing.assert_close(found.advantages[:, 1], per_row, **EXACT)
    assert found.advantages[0, 0] == 0, "a hole gets no advantage"
    torch.testing.assert_close(found.advantages[1:, 0], per_row[1:], **EXACT)


def test_a_group_of_one_or_of_equal_rewards_has_no_advantage() -> None:
    episodes = make_episodes([1] * 3, [1] * 3)
    rewards = torch.tensor([[4.0], [2.0], [2.0]])
    found = GroupBaseline()(episodes.evolve(rewards=rewards, group=torch.tensor([0, 1, 1])))
    assert found.advantages.flatten().tolist() == [0.0, 0.0, 0.0]


def test_each_response_is_compared_with_the_others() -> None:
    episodes, totals = groups()
    found = LeaveOneOut()(episodes)
    parts = [totals[:3], totals[3:]]
    expected = [total - (sum(part) - total) / (len(part) - 1) for part in parts for total in part]
    torch.testing.assert_close(found.advantages[:, 1].tolist(), expected, **EXACT)
    assert found.advantages[0, 0] == 0, "a hole gets no advantage"
    torch.testing.assert_close(found.returns[:, 1].tolist(), totals, **EXACT)


def test_a_global_baseline_is_the_reward_to_come_whitened_over_all_steps() -> None:
    episodes = dialogues().evolve(values=torch.full((3, 6), torch.nan, dtype=torch.float64))
    found = GlobalBaseline()(episodes)
    to_come = []
    for row in range(len(episodes)):
        rewards = episodes.rewards[row][episodes.mask[row]].tolist()
        to_come += [sum(rewards[step:]) for step in range(len(rewards))]
    mean, spread = statistics.fmean(to_come), (statistics.pvariance(to_come) + 1e-8) ** 0.5
    expected = [(reward - mean) / spread for reward in to_come]
    torch.testing.assert_close(found.advantages[episodes.mask].tolist(), expected, **EXACT)
    torch.testing.assert_close(found.returns[episodes.mask].tolist(), to_come, **EXACT)
    assert found.advantages[~episodes.mask].eq(0).all()
    assert found.values.isnan().all(), "the values stay as they were"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GAE(gamma=1.5), r"advantages\.gamma: 1\.5"),
        (lambda: GAE(gae_lambda=-1), r"advantages\.gae_lambda: -1"),
        (lambda: GAE(value_lambda=2), r"advantages\.value_lambda: 2"),
        (lambda: GroupBaseline(scale="rank"), r"advantages\.scale: 'rank' is unknown; expected one of group, batch"),
    ],
    ids=["gamma", "lambda", "critic's lambda", "scale"],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
