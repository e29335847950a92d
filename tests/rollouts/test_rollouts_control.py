"""Fragments of environments: resets are no records, limits are no ends, and a checkpoint continues the episodes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from small_environments import register
from torch import Tensor

from ippo_lightning.algorithms import GAE
from ippo_lightning.errors import UserError
from ippo_lightning.policies import CNN, MLP, ActorCritic
from ippo_lightning.records import ControlEpisodes
from ippo_lightning.rollouts import ControlRollouts, EnvironmentSettings, play_episodes

register()
STEPS = 40
GAMMA, LAMBDA = 0.9, 0.8
FEW_EPISODES = 0.4
"""How far the deviation of the last 20 steps may be from that of all steps."""
MODES = ("same_step", "next_step")


def settings_of(name: str = "Counter-v0", **given: Any) -> EnvironmentSettings:
    return EnvironmentSettings(**{"id": name, "num_envs": 3, **given})


def policy_of(rollouts: ControlRollouts) -> ActorCritic:
    torch.manual_seed(5)
    builder = CNN() if rollouts.spaces.observations.is_image else MLP(hidden=[8])
    policy = builder.build(rollouts.spaces.observations, rollouts.spaces.actions)
    with torch.no_grad():
        policy.critic[-1].weight.add_(torch.randn_like(policy.critic[-1].weight))
    return policy


def collected(settings: EnvironmentSettings, *, seed: int = 1) -> tuple[ControlEpisodes, ControlRollouts, ActorCritic]:
    rollouts = ControlRollouts(settings)
    policy = policy_of(rollouts)
    torch.manual_seed(seed)
    found = rollouts.collect(policy, num_steps=STEPS, gamma=GAMMA)
    rollouts.close()
    return found, rollouts, policy


def played(settings: EnvironmentSettings, rollouts: ControlRollouts, episodes: ControlEpisodes) -> Iterator[list[Any]]:
    """The recorded actions played again by hand, in plain environments: one list of transitions per environment."""
    for index in range(settings.num_envs):
        environment, number = gymnasium.make(settings.id), 0
        seen: Any = None
        found = []
        for step in range(STEPS):
            if not episodes.mask[index, step]:
                continue
            if seen is None:
                seed = np.random.SeedSequence((rollouts.seed, index, number)).generate_state(1)[0]
                seen, number = environment.reset(seed=int(seed))[0], number + 1
            action = int(episodes.actions[index, step])
            after, reward, terminated, truncated, _ = environment.step(action)
            found.append((seen, action, float(reward), after, terminated, terminated or truncated))
            seen = None if terminated or truncated else after
        yield found


def advantages_by_hand(transitions: list[Any], policy: ActorCritic) -> list[float]:
    """Sums of discounted errors, episode by episode, without any recursion over a mask."""
    values = [float(policy.values(torch.as_tensor(one[0])[None])) for one in transitions]
    after = [0.0 if one[4] else float(policy.values(torch.as_tensor(one[3])[None])) for one in transitions]
    errors = [one[2] + GAMMA * b - a for one, a, b in zip(transitions, values, after, strict=True)]
    found = []
    for start in range(len(transitions)):
        total, factor = 0.0, 1.0
        for step in range(start, len(transitions)):
            total, factor = total + factor * errors[step], factor * GAMMA * LAMBDA
            if transitions[step][5]:
                break
        found.append(total)
    return found


@pytest.mark.parametrize("autoreset", MODES)
@pytest.mark.parametrize("name", ["Counter-v0", "CartPole-v1", "FrozenLake-v1"])
def test_records_and_advantages_are_those_of_plain_environments(name: str, autoreset: str) -> None:
    settings = settings_of(name, autoreset=autoreset)
    episodes, rollouts, policy = collected(settings)
    # A limit and an end: both occur.
    assert bool(episodes.terminated[episodes.mask].any())
    assert name != "Counter-v0" or bool((episodes.done & ~episodes.terminated)[episodes.mask].any())
    assert bool((~episodes.mask).any()) == (autoreset == "next_step")
    estimated = GAE(gamma=GAMMA, gae_lambda=LAMBDA, whiten=False)(episodes)
    for index, expected in enumerate(played(settings, rollouts, episodes)):
        counts = episodes.mask[index]
        for name_of_field, place in (("observations", 0), ("rewards", 2), ("terminated", 4), ("done", 5)):
            found = getattr(episodes, name_of_field)[index][counts]
            wanted = torch.as_tensor(np.array([one[place] for one in expected]), dtype=found.dtype)
            assert torch.equal(found, wanted), name_of_field
        by_hand = torch.tensor(advantages_by_hand(expected, policy))
        torch.testing.assert_close(estimated.advantages[index][counts], by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autoreset", MODES)
def test_steps_off_the_mask_are_zero_and_no_transitions(autoreset: str) -> None:
    episodes, _, _ = collected(settings_of(autoreset=autoreset))
    for name in ("rewards", "values", "log_probs"):
        assert not getattr(episodes, name)[~episodes.mask].any()
    assert len(GAE(whiten=False)(episodes).transitions()) == episodes.num_steps


@pytest.mark.parametrize("autoreset", MODES)
def test_processes_of_their_own_give_the_same_records(autoreset: str) -> None:
    first, second = (
        collected(settings_of("CartPole-v1", autoreset=autoreset, vectorization=kind))[0] for kind in ("sync", "async")
    )
    for name in ControlEpisodes.columns():
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("autoreset", MODES)
def test_returns_and_lengths_are_those_of_whole_episodes(autoreset: str) -> None:
    settings = settings_of(autoreset=autoreset)
    episodes, rollouts, _ = collected(settings)
    expected = []
    for transitions in played(settings, rollouts, episodes):
        rewards: list[float] = []
        for one in transitions:
            rewards.append(one[2])
            if one[5]:
                expected.append((sum(rewards), len(rewards)))
                rewards = []
    assert sorted(rollouts.recent) == sorted(expected)
    assert rollouts.finished == len(expected)


# --- normalisation ----------------------------------------------------------------------------------------------


def test_observations_are_normalised_by_all_that_was_seen() -> None:
    settings = settings_of("CartPole-v1", normalise_observations=True, normalise_rewards=True)
    episodes, rollouts, _ = collected(settings)
    plain = ControlRollouts(settings_of("CartPole-v1"))
    seen = [np.stack([one[0] for one in transitions]) for transitions in played(settings, rollouts, episodes)]
    moments = rollouts.observation_moments
    assert moments is not None
    assert rollouts.return_moments is not None
    everything = np.concatenate([*seen, rollouts._raw])
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(moments.variance, everything.var(0), rtol=1e-3, atol=1e-4)
    assert float(episodes.observations[:, 20:].std()) == pytest.approx(1, abs=FEW_EPISODES)
    assert plain.observation_moments is None
    # The log is in the environment's own units.
    assert all(value == length for value, length in rollouts.recent)
    assert float(episodes.rewards[:, 5:].max()) < 1


def test_an_evaluation_changes_no_statistics() -> None:
    _, rollouts, policy = collected(settings_of("CartPole-v1", normalise_observations=True))
    assert rollouts.observation_moments is not None
    before = rollouts.observation_moments.state_dict()
    play_episodes(policy, rollouts, seeds=[1, 2, 3])
    after = rollouts.observation_moments.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


# --- evaluation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greedy", [True, False], ids=["most probable actions", "drawn actions"])
def test_episodes_are_those_of_several_ranks_if_no_action_is_drawn(greedy: bool) -> None:
    _, rollouts, policy = collected(settings_of("CartPole-v1"))

    def played(seeds: list[int]) -> list[tuple[float, int]]:
        torch.manual_seed(0)
        return play_episodes(policy, rollouts, seeds=seeds, greedy=greedy)

    of_ranks = [played(list(range(rank, 8, 2))) for rank in (0, 1)]
    assert (played(list(range(8))) == [of_ranks[seed % 2][seed // 2] for seed in range(8)]) == greedy


@pytest.mark.parametrize("count", [1, 5, 40])
def test_each_seed_is_one_episode_of_an_evaluation(count: int) -> None:
    _, rollouts, policy = collected(settings_of("CartPole-v1"))
    found = play_episodes(policy, rollouts, seeds=list(range(count)), greedy=True)
    expected = []
    for seed in range(count):
        environment, total, is_over = gymnasium.make("CartPole-v1"), 0.0, False
        seen, _ = environment.reset(seed=seed)
        while not is_over:
            action = policy.act(torch.as_tensor(seen)[None], greedy=True)
            seen, reward, terminated, truncated, _ = environment.step(action.numpy()[0])
            total, is_over = total + float(reward), terminated or truncated
        expected.append((total, int(total)))
    assert found == expected  # in the order of the seeds


# --- checkpoints ------------------------------------------------------------------------------------------------

REBUILT = [
    ("Counter-v0", {}),
    ("CartPole-v1", {}),
    ("CartPole-v1", {"vectorization": "async"}),
    ("CartPole-v1", {"normalise_observations": True, "normalise_rewards": True}),
    ("Acrobot-v1", {}),
    ("Pendulum-v1", {}),
    ("FrozenLake-v1", {"options": {"is_slippery": True}}),
    pytest.param("LunarLander-v3", {}, marks=pytest.mark.skipif(find_spec("Box2D") is None, reason="needs Box2D")),
    pytest.param("BipedalWalker-v3", {}, marks=pytest.mark.skipif(find_spec("Box2D") is None, reason="needs Box2D")),
    pytest.param(
        "MiniGrid-Empty-8x8-v0",
        {"wrappers": ["ImgObsWrapper"]},
        marks=pytest.mark.skipif(find_spec("minigrid") is None, reason="needs minigrid"),
    ),
    pytest.param(
        "highway-v0",
        {"num_envs": 1, "options": {"config": {"vehicles_count": 5}}},
        marks=pytest.mark.skipif(find_spec("highway_env") is None, reason="needs highway-env"),
    ),
]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def two_rollouts(settings: EnvironmentSettings, *, is_interrupted: bool) -> tuple[ControlEpisodes, dict[str, Any]]:
    rollouts = ControlRollouts(settings)
    policy = policy_of(rollouts)
    torch.manual_seed(1)
    steps = 6 if settings.id.startswith("highway") else 33
    rollouts.collect(policy, num_steps=steps, gamma=GAMMA)
    if is_interrupted:
        stream, state = torch.get_rng_state(), through_a_file(rollouts.state_dict())
        rollouts.close()
        rollouts = ControlRollouts(settings)
        torch.manual_seed(99)
        rollouts.load_state_dict(state)
        torch.set_rng_state(stream)
    found = rollouts.collect(policy, num_steps=steps, gamma=GAMMA)
    state = rollouts.state_dict()
    rollouts.close()
    return found, state


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [entry for key in sorted(value) for entry in flat(value[key])]
    if isinstance(value, list | tuple):
        return [entry for part in value for entry in flat(part)]
    return value.flatten().tolist() if isinstance(value, Tensor) else [value]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("autoreset", MODES)
@pytest.mark.parametrize(("name", "given"), REBUILT)
def test_a_checkpoint_continues_the_episodes_bit_for_bit(name: str, given: dict[str, Any], autoreset: str) -> None:
    settings = settings_of(name, autoreset=autoreset, **given)
    (first, state), (second, other) = (two_rollouts(settings, is_interrupted=flag) for flag in (False, True))
    for column in ControlEpisodes.columns():
        torch.testing.assert_close(getattr(first, column), getattr(second, column), rtol=0, atol=0, equal_nan=True)
    assert flat(state) == flat(other)


def test_an_environment_that_cannot_be_repeated_begins_new_episodes_and_says_so() -> None:
    with pytest.warns(UserWarning, match="Forgetful-v0 does not repeat an episode") as caught:
        episodes, _ = two_rollouts(settings_of("Forgetful-v0"), is_interrupted=True)
    assert "\n" not in str(caught[0].message)
    assert not episodes.observations[:, 0, 0].any()


def test_a_checkpoint_before_the_first_rollout_begins_at_the_beginning() -> None:
    rollouts = ControlRollouts(settings_of())
    rollouts.load_state_dict(through_a_file(ControlRollouts(settings_of()).state_dict()))
    torch.manual_seed(1)
    found = rollouts.collect(policy_of(rollouts), num_steps=3, gamma=GAMMA)
    assert not found.observations[:, 0, 0].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_envs": 2}, "environment.num_envs: the checkpoint has 3, and this run has 2"),
        ({"normalise_rewards": True}, "environment.normalise_rewards: True is not that of the checkpoint"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(given: dict[str, Any], message: str) -> None:
    _, state = two_rollouts(settings_of(), is_interrupted=False)
    with pytest.raises(UserError, match=message):
        ControlRollouts(settings_of(**given)).load_state_dict(state)


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"id": "CartPol-v1"}, "'CartPol-v1' is not registered with gymnasium; did you mean 'CartPole-v1'?"),
        ({"id": "LunarLander-v2"}, "did you mean 'LunarLander-v3'?"),
        ({"id": "CartPole-v9"}, "did you mean 'CartPole-v1'?"),
        ({"id": "os:CartPole-v1"}, "environment.id: os:CartPole-v1 names a module"),
        ({"id": "nonsense"}, "expected an id of gymnasium"),
        ({"id": "CartPole-v1", "num_envs": 0}, "environment.num_envs: 0 is out of range"),
        ({"id": "CartPole-v1", "autoreset": "never"}, "environment.autoreset: 'never' is unknown"),
        ({"id": "CartPole-v1", "options": {"size": 3}}, "environment.options: CartPole-v1 refuses"),
        ({"id": "CartPole-v1", "wrappers": ["FlattenObservatio"]}, "did you mean 'FlattenObservation'?"),
        ({"id": "Unreadable-v0"}, "an observation of Unreadable-v0 is a Dict"),
        ({"id": "FrozenLake-v1", "normalise_observations": True}, "is a number from a list; set it to false"),
    ],
)
def test_a_wrong_setting_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ControlRollouts(EnvironmentSettings(**given))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
