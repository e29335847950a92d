"""Each prompt gets pilots, and the prompts whose rewards vary most get the rest of their responses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_episodes import content, make_episodes

from ippo_lightning.engine import PilotCommit, pilot_commit
from ippo_lightning.engine.chosen_groups import ChosenGroups
from ippo_lightning.engine.pilot_commit import commit
from ippo_lightning.errors import UserError
from ippo_lightning.records import RolloutPlan, TextEpisodes

REWARDS = {
    "a": [0.0, 1.0, 1.0, 0.0],
    "b": [0.0, 0.5, 0.0, 0.5],
    "e": [0.0, 0.0, 0.0, 1.0],
    "l": [0.0, 0.0, 9.0, 0.0],  # its pilots do not show that it varies most
    "n": [],
}
"""What the responses to a prompt earn, in the order of sampling; the first letter of a prompt is its name here."""


class Sampler:
    """Gives each prompt the next of its rewards, and remembers the counts that it was asked for."""

    def __init__(self, **changes: list[float]) -> None:
        self.rewards = {**REWARDS, **changes}
        self.asked: list[list[int]] = []
        self.given: list[TextEpisodes] = []
        self._used: dict[str, int] = {}

    def __call__(self, plan: RolloutPlan, *, may_be_empty: bool = False) -> TextEpisodes:
        self.asked.append(plan.counts.tolist())
        group, rewards = [], []
        for place, (prompt, count) in enumerate(zip(plan.batch["prompts"], plan.counts.tolist(), strict=True)):
            start = self._used.get(prompt, 0)
            own = self.rewards[prompt[0]][start : start + count]
            self._used[prompt] = start + count
            group += [place] * len(own)
            rewards += own
        # lengths that differ, so that joining has to pad
        lengths = [1 + len(self.asked)] * len(group)
        episodes = make_episodes(lengths, lengths, first=100 * len(self.asked)).evolve(
            group=torch.tensor(group, dtype=torch.long),
            outcome_rewards=torch.tensor(rewards),
            prompts=tuple(plan.batch["prompts"][place] for place in group),
        )
        self.given.append(episodes)
        return episodes


def committed(
    prompts: str,
    settings: PilotCommit,
    *,
    counts: list[int] | None = None,
    iteration: int = 0,
    **rewards: list[float],
) -> tuple[ChosenGroups[TextEpisodes], Sampler]:
    """Commit to prompts that are written with a space between, with four responses each."""
    names, sampler = prompts.split(), Sampler(**rewards)
    batch = {"prompts": names, "examples": [{}] * len(names)}
    plan = RolloutPlan(batch=batch, counts=torch.tensor(counts or [4] * len(names)))
    found = commit(plan, sampler, settings=settings, iteration=iteration)
    assert plan.sealed
    return found, sampler


def test_the_prompts_whose_pilots_vary_most_get_the_rest_of_their_responses() -> None:
    found, sampler = committed("e1 b1 l1 a1 e2 a2", PilotCommit(num_prompts=3))
    assert sampler.asked == [[2] * 6, [0, 2, 0, 2, 0, 2]]
    assert found.episodes.prompts == tuple(name for name in ("b1", "a1", "a2") for _ in range(4)), "no group is split"
    assert found.episodes.outcome_rewards.tolist() == [*REWARDS["b"], *REWARDS["a"], *REWARDS["a"]], "pilots come first"
    assert found.episodes.group.tolist() == [1] * 4 + [3] * 4 + [5] * 4
    assert not found.is_placeholder


def test_everything_that_was_sampled_is_counted_and_no_number_moves() -> None:
    found, sampler = committed("e1 b1 a1 e2", PilotCommit(num_prompts=1))
    # the pilots earn 0 + 0.5 + 1 + 0; the only prompt that is chosen has different rewards
    assert found.metrics == {
        "pilot_commit/pilots": 8,
        "pilot_commit/pilots_discarded": 6,
        "pilot_commit/reward_mean": 1.5 / 8,
        "pilot_commit/zero_variance_fraction": 0,
    }
    assert found.sampled.group.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3]
    given = [row for episodes in sampler.given for row in content(episodes)]
    places = [0, 1, 2, 3, 4, 5, 8, 9, 6, 7]
    assert content(found.sampled) == [given[place] for place in places], "shorter rows are padded"
    assert content(found.episodes) == [given[place] for place in (4, 5, 8, 9)]


def test_where_no_pilots_differ_the_choice_is_random_and_another_one_in_each_iteration() -> None:
    prompts = " ".join(f"e{number}" for number in range(8))
    settings = PilotCommit(num_prompts=2, num_pilots=3)
    chosen = [committed(prompts, settings, iteration=iteration)[0].episodes.prompts for iteration in range(6)]
    assert len(set(chosen)) > 1
    assert chosen[3] == committed(prompts, settings, iteration=3)[0].episodes.prompts
    other = PilotCommit(num_prompts=2, num_pilots=3, seed=1)
    assert chosen != [committed(prompts, other, iteration=iteration)[0].episodes.prompts for iteration in range(6)]


def test_ranks_draw_random_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = " ".join(f"e{number}" for number in range(8))
    settings = PilotCommit(num_prompts=2, rule="random")
    chosen = []
    for mine in (0, 1):
        monkeypatch.setattr(pilot_commit, "rank", lambda mine=mine: mine)
        chosen.append([committed(prompts, settings, iteration=iteration)[0].episodes.prompts for iteration in range(6)])
    assert chosen[0] != chosen[1]


def test_the_fraction_without_variance_is_that_of_the_chosen_groups() -> None:
    found, _ = committed("z1 z2 a1", PilotCommit(num_prompts=2), z=[1.0] * 4)
    assert found.metrics["pilot_commit/zero_variance_fraction"] == 0.5


def test_the_control_has_the_same_pilots_and_random_prompts() -> None:
    by_variance = committed("e1 b1 l1 a1", PilotCommit(num_prompts=2))[1]
    chosen = set()
    for iteration in range(12):
        settings = PilotCommit(num_prompts=2, rule="random")
        found, sampler = committed("e1 b1 l1 a1", settings, iteration=iteration)
        assert sampler.asked[0] == by_variance.asked[0]
        assert sum(sampler.asked[1]) == sum(by_variance.asked[1])
        chosen |= set(found.episodes.prompts)
    assert chosen == {"e1", "b1", "l1", "a1"}


@pytest.mark.parametrize("rule", ["variance", "random"])
def test_prompts_without_responses_or_without_a_finite_pilot_are_not_chosen(rule: Any) -> None:
    for iteration in range(8):
        found, sampler = committed(
            "n1 a1 e1 a2", PilotCommit(num_prompts=2, rule=rule), counts=[4, 0, 4, 4], iteration=iteration
        )
        assert sampler.asked == [[2, 0, 2, 2], [0, 0, 2, 2]]
        assert set(found.episodes.prompts) == {"e1", "a2"}


def test_a_callback_that_allocates_few_responses_is_heard() -> None:
    _, sampler = committed("a1 a2 e1", PilotCommit(num_prompts=2), counts=[1, 3, 4], a=[0.0, 5.0, 1.0])
    assert sampler.asked == [[1, 2, 2], [0, 1, 2]], "the pilots of a1 are its only response, so that it does not vary"


def test_a_rest_that_is_broken_as_a_whole_leaves_the_pilots() -> None:
    found, _ = committed("a1 e1", PilotCommit(num_prompts=1), a=[0.0, 1.0])
    assert found.episodes.prompts == ("a1", "a1")


def test_a_batch_with_few_prompts_gets_all_its_responses() -> None:
    found, sampler = committed("a1 e1", PilotCommit(num_prompts=5))
    assert sampler.asked == [[2, 2], [2, 2]]
    assert len(found.episodes) == 8


@pytest.mark.parametrize(("pilots", "seen"), [(2, "e1"), (3, "l1")])
def test_more_pilots_see_more(pilots: int, seen: str) -> None:
    found, sampler = committed(
        "e1 l1", PilotCommit(num_pilots=pilots, num_prompts=1), e=[0.0, 1.0, 0.0, 1.0], l=[0.0, 0.0, 9.0, 0.0]
    )
    assert sampler.asked[0] == [pilots, pilots]
    assert set(found.episodes.prompts) == {seen}


def test_prompts_whose_only_responses_are_pilots_are_not_chosen() -> None:
    # the pilots of a1 vary most
    found, sampler = committed("a1 e1 e2", PilotCommit(num_prompts=1), counts=[2, 2, 4])
    assert sampler.asked == [[2, 2, 2], [0, 0, 2]]
    assert set(found.episodes.prompts) == {"e2"}


def test_a_plan_of_pilots_alone_is_refused_before_anything_is_sampled() -> None:
    sampler = Sampler()
    plan = RolloutPlan(batch={"prompts": ["a", "e"], "examples": [{}, {}]}, counts=torch.tensor([2, 1]))
    with pytest.raises(UserError, match="pilot_commit: a callback plans at most 2 responses to each prompt"):
        commit(plan, sampler, settings=PilotCommit(), iteration=0)
    assert sampler.asked == []


def test_a_rest_that_is_numbered_without_gaps_is_refused() -> None:
    plan = RolloutPlan(batch={"prompts": ["e", "a"], "examples": [{}, {}]}, counts=torch.tensor([4, 4]))
    sampler = Sampler()

    def without_gaps(plan: RolloutPlan, **_: Any) -> TextEpisodes:
        episodes = sampler(plan)
        return episodes.evolve(group=episodes.group.unique(return_inverse=True)[1])

    with pytest.raises(UserError, match="groups of the rollout are not the places of its prompts"):
        commit(plan, without_gaps, settings=PilotCommit(num_prompts=1), iteration=0)


@pytest.mark.parametrize("group", [[0, 0, 7, 7], [0, 0, 0, 1]], ids=["no place", "more rows than planned"])
def test_groups_that_are_not_the_places_of_prompts_are_refused(group: list[int]) -> None:
    plan = RolloutPlan(batch={"prompts": ["a", "e"], "examples": [{}, {}]}, counts=torch.tensor([4, 4]))

    def renumbered(plan: RolloutPlan, **_: Any) -> TextEpisodes:
        return Sampler()(plan).evolve(group=torch.tensor(group))

    with pytest.raises(UserError, match="groups of the rollout are not the places of its prompts"):
        commit(plan, renumbered, settings=PilotCommit(), iteration=0)


@pytest.mark.parametrize(
    ("settings", "size", "chosen", "rows"),
    [
        (PilotCommit(), 64, 16, 128),
        (PilotCommit(), 3, 1, 6),
        (PilotCommit(num_prompts=7), 64, 7, 128),
        (PilotCommit(num_prompts=30), 32, 30, 180),
        (PilotCommit(num_prompts=9), 4, 4, 24),
    ],
)
def test_the_sizes_of_an_iteration_follow_from_its_batch(
    settings: PilotCommit, size: int, chosen: int, rows: int
) -> None:
    assert settings.num_chosen(size) == chosen
    assert settings.most_rows(size, num_responses=8) == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_pilots": 0}, r"pilot_commit\.num_pilots: 0 is out of range; expected an integer >= 1"),
        ({"num_pilots": 1.5}, r"pilot_commit\.num_pilots: 1\.5"),
        ({"num_prompts": 0}, r"pilot_commit\.num_prompts: 0 is out of range"),
        ({"rule": "best"}, r"pilot_commit\.rule: .*best"),
        ({"seed": -1}, r"pilot_commit\.seed: -1 is out of range"),
        ({"seed": 2**32}, r"pilot_commit\.seed: 4294967296 is out of range"),
    ],
)
def test_an_argument_out_of_its_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PilotCommit(**changes)
