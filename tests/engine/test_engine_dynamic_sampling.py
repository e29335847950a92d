"""Prompts whose rewards are all equal are replaced as a whole, in a bounded number of rounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_episodes import content, make_episodes

from ippo_lightning.engine import DynamicSampling
from ippo_lightning.engine.chosen_groups import ChosenGroups
from ippo_lightning.engine.dynamic_sampling import Reserve, fill_groups
from ippo_lightning.errors import UserError
from ippo_lightning.records import Batch, TextEpisodes

TWO = DynamicSampling(num_prompts=2)


class Sampler:
    """Gives each prompt the rewards that its letter stands for, and remembers what it was asked for."""

    def __init__(self, **rewards: list[float]) -> None:
        self.rewards = {"d": [0.0, 1.0], "e": [1.0, 1.0], **rewards}
        self.asked: list[list[str]] = []
        self.given: list[TextEpisodes] = []

    def __call__(self, batch: Batch) -> TextEpisodes:
        prompts = list(batch["prompts"])
        self.asked.append(prompts)
        rewards = [self.rewards[prompt[0]] for prompt in prompts]
        group = [number for number, of_group in enumerate(rewards) for _ in of_group]
        # lengths that differ from round to round, so that joining has to pad
        lengths = [1 + len(self.asked)] * len(group)
        episodes = make_episodes(lengths, lengths).evolve(
            group=torch.tensor(group),
            outcome_rewards=torch.tensor([reward for of_group in rewards for reward in of_group]),
            prompts=tuple(prompts[number] for number in group),
        )
        self.given.append(episodes)
        return episodes


def filled(
    prompts: str, *, num_prompts: int, max_rounds: int = 3, **rewards: list[float]
) -> tuple[ChosenGroups[TextEpisodes], Sampler]:
    """Fill from prompts that are written with a space between: `d1` has different rewards, `e1` equal ones."""
    sampler, names = Sampler(**rewards), prompts.split()
    settings = DynamicSampling(num_prompts=num_prompts)
    reserve = Reserve({"prompts": names, "examples": [{}] * len(names)}, settings)
    first = sampler(reserve.first)
    return fill_groups(first, reserve, sampler, wanted=num_prompts, max_rounds=max_rounds), sampler


def numbers(found: ChosenGroups[Any]) -> tuple[float, float, float, float]:
    return tuple(
        found.metrics[f"dynamic_sampling/{name}"] for name in ("rounds", "prompts", "groups_dropped", "filled_fraction")
    )


@pytest.mark.parametrize(
    ("prompts", "asked", "kept", "expected"),
    [
        ("d1 d2 d3 d4", ["d1 d2 d3"], "d1 d2 d3", (0, 3, 0, 1.0)),
        ("d1 e2 d3 d4 d5", ["d1 e2 d3", "d4"], "d1 d3 d4", (1, 4, 1, 1.0)),
        ("e1 e2 d3 e4 d5 d6 d7", ["e1 e2 d3", "e4 d5", "d6"], "d3 d5 d6", (2, 6, 3, 1.0)),
        ("e1 e2 d3 e4 e5 e6 e7 e8 e9 d0", ["e1 e2 d3", "e4 e5", "e6 e7", "e8 e9"], "d3", (3, 9, 8, 1 / 3)),
        ("e1 e2 d3 d4", ["e1 e2 d3", "d4"], "d3 d4", (1, 4, 2, 2 / 3)),
        ("e1 d2 d3", ["e1 d2 d3"], "d2 d3", (0, 3, 1, 2 / 3)),
    ],
    ids=["none is needed", "one round", "two rounds", "the limit ends it", "the reserve ends it", "no reserve at all"],
)
def test_each_round_samples_as_many_prompts_as_are_missing(
    prompts: str, asked: list[str], kept: str, expected: tuple[float, ...]
) -> None:
    found, sampler = filled(prompts, num_prompts=3)
    assert [" ".join(batch) for batch in sampler.asked] == asked
    assert found.episodes.prompts == tuple(name for name in kept.split() for _ in range(2)), "no group is split"
    assert numbers(found) == pytest.approx(expected)
    assert not found.is_placeholder
    assert " ".join(found.sampled.prompts[::2]) == " ".join(asked), "nothing that was sampled gets lost"


def test_groups_of_different_rounds_have_different_numbers_and_keep_their_content() -> None:
    found, sampler = filled("d1 e2 d3 e4 d5", num_prompts=3)
    assert found.sampled.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found.episodes.group.tolist() == [0, 0, 2, 2, 4, 4]
    lengths = [len(row["response_ids"]) for row in content(found.episodes)]
    assert lengths == [2, 2, 2, 2, 4, 4], "shorter rows are padded, and no number moves"
    given = [row for episodes in sampler.given for row in content(episodes)]
    for joined, row in zip(content(found.episodes), (given[place] for place in (0, 1, 4, 5, 8, 9)), strict=True):
        assert {**joined, "group": None} == {**row, "group": None}


def test_a_round_without_a_finite_row_is_one_that_found_nothing() -> None:
    found, sampler = filled("d1 e2 n3 d4", num_prompts=2, n=[])
    assert len(sampler.asked) == 3
    assert found.episodes.prompts == ("d1", "d1", "d4", "d4")
    assert found.episodes.group.tolist() == [0, 0, 2, 2]
    assert numbers(found) == (2, 3, 1, 1.0)


def test_without_any_different_rewards_one_group_stays_and_is_marked() -> None:
    found, sampler = filled("e1 e2 e3 e4 e5 e6 e7 e8 e9", num_prompts=2, max_rounds=2)
    assert len(sampler.asked) == 3
    assert found.is_placeholder
    assert found.episodes.prompts == ("e1", "e1")
    assert numbers(found) == (2, 6, 6, 0.0)


@pytest.mark.parametrize(
    ("rewards", "is_kept"),
    [
        ([0.1, 0.1, 0.1], False),  # whose variance in floating point is not 0
        ([0.1 + 0.2, 0.3], False),  # the same number in float32
        ([1.0, 1.0 + 2**-23], True),  # the next number
        ([0.0, -0.0], False),
        ([0.0, 0.0, 1e-30], True),
        ([1e30, 1e30], False),
        ([7.0], True),  # a group of one has no comparison
    ],
)
def test_rewards_are_compared_as_numbers_without_a_tolerance(rewards: list[float], is_kept: bool) -> None:
    found, _ = filled("x1 d2", num_prompts=2, x=rewards)
    assert ("x1" in found.episodes.prompts) is is_kept


def test_the_outcome_is_compared_and_not_the_shaped_reward() -> None:
    """With a KL penalty no two shaped rewards are equal; those of these episodes all differ."""
    found, _ = filled("e1 d2", num_prompts=2)
    assert len(found.sampled.rewards.sum(dim=1).unique()) == 4
    assert found.episodes.prompts == ("d2", "d2")


def test_a_reserve_divides_every_column_alike() -> None:
    reserve = Reserve({"prompts": list("abcde"), "examples": tuple(range(5)), "ids": torch.arange(5)}, TWO)
    assert (reserve.first["prompts"], reserve.first["examples"], reserve.first["ids"].tolist()) == (
        ["a", "b"],
        (0, 1),
        [0, 1],
    )
    assert len(reserve) == 3
    taken = reserve.take(2)
    assert (taken["prompts"], taken["examples"], taken["ids"].tolist()) == (["c", "d"], (2, 3), [2, 3])
    assert len(reserve) == 1


def test_a_short_batch_is_all_sampled_at_first() -> None:
    reserve = Reserve({"prompts": ["a", "b"]}, DynamicSampling(num_prompts=5))
    assert (reserve.first["prompts"], len(reserve)) == (["a", "b"], 0)


@pytest.mark.parametrize(
    ("settings", "size", "first"),
    [
        (DynamicSampling(), 64, 16),
        (DynamicSampling(), 9, 2),
        (DynamicSampling(), 3, 1),
        (DynamicSampling(max_rounds=1), 9, 4),
        (DynamicSampling(num_prompts=7), 64, 7),
    ],
)
def test_without_a_number_each_round_has_as_many_prompts_in_reserve(
    settings: DynamicSampling, size: int, first: int
) -> None:
    assert settings.num_first(size) == first
    assert settings.most_rows(size, num_responses=4) == 4 * first
    assert len(Reserve({"prompts": ["a"] * size}, settings)) == size - first


@pytest.mark.parametrize(("column", "found"), [(3, "no entries"), ([1], "1 entries")])
def test_a_column_that_cannot_be_divided_is_refused(column: Any, found: str) -> None:
    with pytest.raises(UserError, match=rf"dynamic_sampling: column epoch of a batch has {found} for 2 prompts"):
        Reserve({"prompts": ["a", "b"], "epoch": column}, TWO)


@pytest.mark.parametrize("name", ["num_prompts", "max_rounds"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_numbers_below_one_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"dynamic_sampling\.{name}: .* expected an integer >= 1"):
        DynamicSampling(**{name: value})
