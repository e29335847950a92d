"""Choosing, trimming and joining episodes never changes what they contain, whatever the layout of a field."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_episodes import (
    PAD,
    PER_STEP,
    TENSORS,
    TEXTS,
    assert_padded_as_promised,
    content,
    make_episodes,
)

from ippo_lightning.errors import UserError
from ippo_lightning.records import TextEpisodes


def test_the_example_of_the_tests_is_what_it_says() -> None:
    episodes = make_episodes([2, 1], [1, 3])
    assert episodes.prompt_ids.tolist() == [[2, 1], [PAD, 101]]
    assert episodes.response_ids.tolist() == [[1, PAD, PAD], [101, 102, 103]]
    assert episodes.mask.tolist() == [[True, False, False], [True, True, True]]
    assert_padded_as_promised(episodes)


def test_counting_leaves_padding_out() -> None:
    episodes = make_episodes([2, 1, 4], [1, 3, 0], extra=2)
    assert (len(episodes), episodes.num_steps, episodes.lengths.tolist()) == (3, 4, [1, 3, 0])


def test_a_record_never_changes_and_evolving_it_leaves_it_alone() -> None:
    episodes = make_episodes([2, 1], [1, 3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        episodes.rewards = torch.zeros(2, 3)
    before = content(episodes)
    changed = episodes.evolve(rewards=torch.ones(2, 3))
    assert content(episodes) == before
    assert changed.rewards.eq(1).all()
    assert changed.log_probs is episodes.log_probs


@pytest.mark.parametrize("name", [name for name in TENSORS if name not in ("mask", "prompt_mask")])
def test_a_tensor_of_another_shape_is_refused(name: str) -> None:
    episodes = make_episodes([2, 1], [1, 3])
    with pytest.raises(ValueError, match=rf"TextEpisodes\.{name} has shape"):
        episodes.evolve(**{name: getattr(episodes, name)[:1]})


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_too_few_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"TextEpisodes\.{name} has 1 entries for 2 rows"):
        make_episodes([2, 1], [1, 3]).evolve(**{name: getattr(make_episodes([1], [1]), name)})


@st.composite
def batches(draw: st.DrawFn, *, first: int = 0) -> TextEpisodes:
    count = draw(st.integers(0, 5))
    lengths = [draw(st.lists(st.integers(low, 4), min_size=count, max_size=count)) for low in (1, 0)]
    return make_episodes(*lengths, extra=draw(st.integers(0, 2)), first=first)


@given(episodes=batches(), data=st.data())
def test_choosing_cuts_every_field_alike_and_changes_nothing(episodes: TextEpisodes, data) -> None:
    index = data.draw(st.lists(st.integers(0, len(episodes) - 1), max_size=6) if len(episodes) else st.just([]))
    all_of_them = content(episodes)
    for positions in (index, torch.tensor(index, dtype=torch.long)):
        chosen = episodes.select(positions)
        assert content(chosen) == [all_of_them[row] for row in index]
        assert_padded_as_promised(chosen)
    assert content(episodes) == all_of_them


def test_choosing_leaves_out_columns_that_nobody_needs() -> None:
    episodes = make_episodes([4, 2, 1], [1, 5, 2])
    chosen = episodes.select([2, 0])
    assert (chosen.prompt_ids.shape, chosen.response_ids.shape) == ((2, 4), (2, 2))
    assert all(getattr(chosen, name).shape == (2, 2) for name in PER_STEP)


@pytest.mark.parametrize("index", [[], torch.tensor([], dtype=torch.long)])
def test_choosing_nobody_gives_an_empty_record(index) -> None:
    chosen = make_episodes([4, 2], [1, 5]).select(index)
    assert (len(chosen), chosen.num_steps, chosen.prompts) == (0, 0, ())
    assert len(chosen.trimmed()) == 0


@pytest.mark.parametrize("mask", [torch.tensor([False, True, True]), [False, True, True]])
def test_a_mask_is_not_taken_for_positions(mask) -> None:
    with pytest.raises(UserError, match=r"episodes\.select: index is a mask \[3\]; expected positions"):
        make_episodes([1, 2, 3], [3, 2, 1]).select(mask)


@given(episodes=batches())
def test_trimming_is_as_tight_as_can_be_and_changes_nothing(episodes: TextEpisodes) -> None:
    trimmed = episodes.trimmed()
    assert content(trimmed) == content(episodes)
    assert_padded_as_promised(trimmed)
    assert trimmed.response_ids.shape[1] == max([1, *episodes.lengths.tolist()])
    assert trimmed.prompt_ids.shape[1] == max([1, *episodes.prompt_mask.sum(dim=1).tolist()])


def test_an_empty_response_keeps_one_column_of_padding() -> None:
    trimmed = make_episodes([1, 1], [0, 0], extra=3).trimmed()
    assert trimmed.response_ids.tolist() == [[PAD], [PAD]]
    assert trimmed.num_steps == 0


@given(parts=st.tuples(batches(), batches(first=10), batches(first=20)))
def test_joining_keeps_every_episode_as_it_was(parts: tuple[TextEpisodes, ...]) -> None:
    joined = TextEpisodes.concat(parts)
    assert content(joined) == [episode for part in parts for episode in content(part)]
    assert_padded_as_promised(joined)
    assert all(getattr(joined, name).dtype == getattr(parts[0], name).dtype for name in TENSORS)


def test_joining_pads_to_the_widest() -> None:
    joined = TextEpisodes.concat([make_episodes([1], [4]), make_episodes([3], [2], first=1)])
    assert joined.prompt_ids.tolist() == [[PAD, PAD, 1], [103, 102, 101]]
    assert joined.response_ids.tolist() == [[1, 2, 3, 4], [101, 102, PAD, PAD]]


def test_what_was_joined_can_be_chosen_apart() -> None:
    parts = [make_episodes([1, 4], [4, 2]), make_episodes([3], [6], first=2)]
    joined = TextEpisodes.concat(parts)
    assert [content(joined.select(rows)) for rows in ([0, 1], [2])] == [content(part) for part in parts]


def test_numbers_of_stages_to_come_stay_nan_when_chosen_and_joined() -> None:
    episodes = make_episodes([1, 2], [2, 3])
    episodes = episodes.evolve(rewards=torch.full_like(episodes.rewards, math.nan))
    for found in (episodes.select([1, 0]), TextEpisodes.concat([episodes, episodes])):
        assert found.rewards[found.mask].isnan().all()


def test_moving_a_record_moves_every_tensor() -> None:
    episodes = make_episodes([1, 2], [2, 3])
    moved = episodes.to("meta")
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}
    assert {getattr(moved, name).shape for name in PER_STEP} == {(2, 3)}
    assert moved.prompts == episodes.prompts
    assert content(episodes.to("cpu")) == content(episodes)


def with_holes() -> TextEpisodes:
    """Two dialogues: the second token of the first row and the first of the second are those of a tool."""
    episodes = make_episodes([2, 1], [4, 3], extra=2)
    holes = episodes.mask.clone()
    holes[0, 1] = holes[1, 0] = False
    return episodes.evolve(mask=holes)


def test_a_hole_in_the_mask_does_not_count_and_is_still_read() -> None:
    episodes = with_holes()
    assert (episodes.lengths.tolist(), episodes.spans.tolist(), episodes.num_steps) == ([3, 2], [4, 3], 5)
    assert episodes.cost().tolist() == [6, 4]
    assert episodes.response_mask.sum(dim=1).tolist() == [4, 3]
    assert episodes.response_mask[0, 1]


def test_trimming_keeps_what_lies_behind_a_hole() -> None:
    chosen = with_holes().select([1])
    assert chosen.mask.tolist() == [[False, True, True]]
    assert chosen.response_ids.tolist() == [[101, 102, 103]]
    joined = TextEpisodes.concat([chosen, with_holes().select([0])])
    assert joined.mask.tolist() == [[False, True, True, False], [True, False, True, True]]


def test_without_holes_the_policy_reads_what_counts() -> None:
    episodes = make_episodes([2, 1, 1], [1, 3, 0], extra=1)
    assert torch.equal(episodes.response_mask, episodes.mask)


def test_a_row_is_described_by_its_prompt_and_travels_without_its_texts() -> None:
    episodes = make_episodes([2, 1], [1, 3])
    assert episodes.describe(1) == "prompt 'prompt 1'"
    light = episodes.for_update()
    assert (light.prompts, light.responses, light.examples) == (episodes.prompts, ("", ""), ({}, {}))
