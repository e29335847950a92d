"""The records: choosing, trimming and joining episodes never changes what they hold; plans refuse nonsense."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ippo_lightning.errors import UserError
from ippo_lightning.records import Episodes, Minibatch, UpdatePlan, concat_episodes

PAD = 99
PER_TOKEN = ("log_probs", "ref_log_probs", "values", "rewards", "advantages", "returns")
PER_EPISODE = ("truncated", "group", "outcome_rewards")
TEXTS = ("prompts", "responses", "examples")
TENSORS = ("prompt_ids", "prompt_mask", "response_ids", "response_mask", *PER_TOKEN, *PER_EPISODE)


def make_episodes(
    prompt_lengths: list[int], response_lengths: list[int], *, extra: int = 0, first: int = 0
) -> Episodes:
    """Episodes whose every number tells which field, episode and token it belongs to; `extra` columns of padding."""
    count = len(response_lengths)
    prompt_columns, columns = max([1, *prompt_lengths]) + extra, max([1, *response_lengths]) + extra
    prompt_mask = torch.arange(prompt_columns).flip(0) < torch.tensor(prompt_lengths, dtype=torch.long)[:, None]
    mask = torch.arange(columns) < torch.tensor(response_lengths, dtype=torch.long)[:, None]
    rows = torch.arange(first, first + count)
    prompt_ids = (100 * rows[:, None] + torch.arange(prompt_columns).flip(0)).masked_fill(~prompt_mask, PAD)
    response_ids = (100 * rows[:, None] + torch.arange(columns)).masked_fill(~mask, PAD)
    numbers = {name: (response_ids + 0.1 * place) * mask for place, name in enumerate(PER_TOKEN)}
    return Episodes(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        response_mask=mask,
        truncated=rows % 2 == 1,
        group=rows // 2,
        outcome_rewards=rows / 2,
        prompts=tuple(f"prompt {row}" for row in rows.tolist()),
        responses=tuple(f"response {row}" for row in rows.tolist()),
        examples=tuple({"answer": row} for row in rows.tolist()),
        **numbers,
    )


def content(episodes: Episodes) -> list[dict[str, object]]:
    """Each episode without its padding: what must survive whatever is done to the record."""
    found = []
    for row in range(len(episodes)):
        of_prompt, of_response = episodes.prompt_mask[row], episodes.response_mask[row]
        one: dict[str, object] = {"prompt_ids": episodes.prompt_ids[row][of_prompt].tolist()}
        for name in ("response_ids", *PER_TOKEN):
            one[name] = getattr(episodes, name)[row][of_response].tolist()
        for name in PER_EPISODE:
            one[name] = getattr(episodes, name)[row].item()
        for name in TEXTS:
            one[name] = getattr(episodes, name)[row]
        found.append(one)
    return found


def assert_padded_as_promised(episodes: Episodes) -> None:
    """Prompts on the left, responses on the right, numbers 0.0 off the mask."""
    assert episodes.prompt_mask.int().diff(dim=1).ge(0).all()
    assert episodes.response_mask.int().diff(dim=1).le(0).all()
    assert all(getattr(episodes, name)[~episodes.response_mask].eq(0).all() for name in PER_TOKEN)
    assert episodes.prompt_ids[~episodes.prompt_mask].eq(PAD).all()
    assert episodes.response_ids[~episodes.response_mask].eq(PAD).all()


def test_the_example_of_the_tests_is_what_it_says() -> None:
    episodes = make_episodes([2, 1], [1, 3])
    assert episodes.prompt_ids.tolist() == [[1, 0], [PAD, 100]]
    assert episodes.response_ids.tolist() == [[0, PAD, PAD], [100, 101, 102]]
    assert episodes.response_mask.tolist() == [[True, False, False], [True, True, True]]
    assert_padded_as_promised(episodes)


def test_counting_leaves_padding_out() -> None:
    episodes = make_episodes([2, 1, 4], [1, 3, 0], extra=2)
    assert (len(episodes), episodes.num_tokens, episodes.lengths.tolist()) == (3, 4, [1, 3, 0])


def test_a_record_never_changes_and_evolving_it_leaves_it_alone() -> None:
    episodes = make_episodes([2, 1], [1, 3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        episodes.rewards = torch.zeros(2, 3)
    before = content(episodes)
    changed = episodes.evolve(rewards=torch.ones(2, 3))
    assert content(episodes) == before
    assert changed.rewards.eq(1).all()
    assert changed.log_probs is episodes.log_probs


@pytest.mark.parametrize("name", [name for name in TENSORS if name != "response_ids"])
def test_a_tensor_of_another_shape_is_refused(name: str) -> None:
    episodes = make_episodes([2, 1], [1, 3])
    with pytest.raises(ValueError, match=rf"Episodes\.{name if name != 'prompt_ids' else 'prompt_mask'} has shape"):
        episodes.evolve(**{name: getattr(episodes, name)[:1]})


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_too_few_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"Episodes\.{name} has 1 entries for 2 episodes"):
        make_episodes([2, 1], [1, 3]).evolve(**{name: getattr(make_episodes([1], [1]), name)})


@st.composite
def batches(draw: st.DrawFn, *, first: int = 0) -> Episodes:
    count = draw(st.integers(0, 5))
    lengths = [draw(st.lists(st.integers(low, 4), min_size=count, max_size=count)) for low in (1, 0)]
    return make_episodes(*lengths, extra=draw(st.integers(0, 2)), first=first)


@given(episodes=batches(), data=st.data())
def test_choosing_cuts_every_field_alike_and_changes_nothing(episodes: Episodes, data) -> None:
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
    assert all(getattr(chosen, name).shape == (2, 2) for name in PER_TOKEN)


@pytest.mark.parametrize("index", [[], torch.tensor([], dtype=torch.long)])
def test_choosing_nobody_gives_an_empty_record(index) -> None:
    chosen = make_episodes([4, 2], [1, 5]).select(index)
    assert (len(chosen), chosen.num_tokens, chosen.prompts) == (0, 0, ())
    assert len(chosen.trimmed()) == 0


@pytest.mark.parametrize("mask", [torch.tensor([False, True, True]), [False, True, True]])
def test_a_mask_is_not_taken_for_positions(mask) -> None:
    with pytest.raises(UserError, match=r"episodes\.select: index is a mask \[3\]; expected positions"):
        make_episodes([1, 2, 3], [3, 2, 1]).select(mask)


@given(episodes=batches())
def test_trimming_is_as_tight_as_can_be_and_changes_nothing(episodes: Episodes) -> None:
    trimmed = episodes.trimmed()
    assert content(trimmed) == content(episodes)
    assert_padded_as_promised(trimmed)
    assert trimmed.response_ids.shape[1] == max([1, *episodes.lengths.tolist()])
    assert trimmed.prompt_ids.shape[1] == max([1, *episodes.prompt_mask.sum(dim=1).tolist()])


def test_an_empty_response_keeps_one_column_of_padding() -> None:
    trimmed = make_episodes([1, 1], [0, 0], extra=3).trimmed()
    assert trimmed.response_ids.tolist() == [[PAD], [PAD]]
    assert trimmed.num_tokens == 0


@given(parts=st.tuples(batches(), batches(first=10), batches(first=20)))
def test_joining_keeps_every_episode_as_it_was(parts: tuple[Episodes, ...]) -> None:
    joined = concat_episodes(parts, pad_token_id=PAD)
    assert content(joined) == [episode for part in parts for episode in content(part)]
    assert_padded_as_promised(joined)
    assert all(getattr(joined, name).dtype == getattr(parts[0], name).dtype for name in TENSORS)


def test_joining_pads_to_the_widest() -> None:
    joined = concat_episodes([make_episodes([1], [4]), make_episodes([3], [2], first=1)], pad_token_id=PAD)
    assert joined.prompt_ids.tolist() == [[PAD, PAD, 0], [102, 101, 100]]
    assert joined.response_ids.tolist() == [[0, 1, 2, 3], [100, 101, PAD, PAD]]


def test_what_was_joined_can_be_chosen_apart() -> None:
    parts = [make_episodes([1, 4], [4, 2]), make_episodes([3], [6], first=2)]
    joined = concat_episodes(parts, pad_token_id=PAD)
    assert [content(joined.select(rows)) for rows in ([0, 1], [2])] == [content(part) for part in parts]


def test_numbers_of_stages_to_come_stay_nan_when_chosen_and_joined() -> None:
    episodes = make_episodes([1, 2], [2, 3])
    episodes = episodes.evolve(rewards=torch.full_like(episodes.rewards, math.nan))
    for found in (episodes.select([1, 0]), concat_episodes([episodes, episodes], pad_token_id=PAD)):
        assert found.rewards[found.response_mask].isnan().all()


def test_moving_a_record_moves_every_tensor() -> None:
    episodes = make_episodes([1, 2], [2, 3])
    moved = episodes.to("meta")
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}
    assert {getattr(moved, name).shape for name in PER_TOKEN} == {(2, 3)}
    assert moved.prompts == episodes.prompts
    assert content(episodes.to("cpu")) == content(episodes)


def make_plan() -> UpdatePlan:
    return UpdatePlan(episodes=make_episodes([1, 2, 3], [3, 2, 1]))


def test_a_fresh_plan_keeps_every_episode_as_it_is() -> None:
    plan = make_plan()
    assert (plan.weights.tolist(), plan.keep.tolist(), plan.history) == ([1.0] * 3, [True] * 3, [])
    assert not plan.sealed


def test_reweighting_drops_where_the_weight_is_zero_and_is_remembered() -> None:
    plan = make_plan()
    scores = torch.tensor([0.5, -1.0, 1.5])
    plan.reweight(torch.tensor([0.5, 0.0, 1.5], dtype=torch.float64), reason="first", scores=scores)
    plan.reweight(torch.tensor([0, 1, 2]), reason="second")
    assert plan.keep.tolist() == [False, True, True]
    assert plan.weights.tolist() == [0.0, 1.0, 2.0]
    assert plan.weights.dtype == torch.float32
    assert [(change.reason, change.weights.tolist()) for change in plan.history] == [
        ("first", [0.5, 0.0, 1.5]),
        ("second", [0.0, 1.0, 2.0]),
    ]
    assert plan.history[0].scores is scores
    assert plan.history[1].scores is None


def test_a_plan_is_not_tied_to_the_tensor_it_was_given() -> None:
    plan, weights = make_plan(), torch.ones(3, requires_grad=True)
    plan.reweight(weights, reason="mine")
    with torch.no_grad():
        weights.zero_()
    assert plan.weights.tolist() == [1.0] * 3
    assert not plan.weights.requires_grad


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2), r"weights of 'rule' have shape \(2,\), expected \(3,\)"),
        (torch.ones(3, 1), r"weights of 'rule' have shape \(3, 1\), expected \(3,\)"),
        (torch.tensor([1.0, math.nan, 1.0]), r"weights of 'rule' hold NaN or infinity"),
        (torch.tensor([1.0, math.inf, 1.0]), r"weights of 'rule' hold NaN or infinity"),
        # finite in double precision, infinite in the plan's
        (torch.tensor([1.0, 1e300, 1.0], dtype=torch.float64), r"weights of 'rule' hold NaN or infinity"),
        (torch.tensor([1.0, -0.25, 1.0]), r"weights of 'rule' go down to -0\.25; expected >= 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused_and_leave_the_plan_alone(weights: Tensor, message: str) -> None:
    plan = make_plan()
    with pytest.raises(UserError, match=r"plan\.reweight: " + message):
        plan.reweight(weights, reason="rule")
    assert (plan.weights.tolist(), plan.history) == ([1.0] * 3, [])


def test_a_sealed_plan_takes_no_more_weights() -> None:
    plan = make_plan()
    plan.sealed = True
    with pytest.raises(UserError, match=r"plan\.reweight: 'late' came after the update had begun"):
        plan.reweight(torch.zeros(3), reason="late")
    assert plan.weights.tolist() == [1.0] * 3


def test_a_rank_without_episodes_has_a_plan_without_weights() -> None:
    plan = UpdatePlan(episodes=make_episodes([], []))
    plan.reweight(torch.zeros(0), reason="nobody")
    assert plan.keep.shape == (0,)


def test_recorded_numbers_get_the_name_of_their_group() -> None:
    plan = make_plan()
    plan.record(influence__kept_fraction=1, plain=torch.tensor(0.5))
    plan.record(plain=2.0)
    assert plan.metrics == {"influence/kept_fraction": 1.0, "plain": 2.0}
    assert all(type(number) is float for number in plan.metrics.values())


def test_a_minibatch_holds_what_it_was_given_and_nothing_else() -> None:
    episodes, weights, value_weights = make_episodes([1], [1]), torch.ones(1), torch.zeros(1)
    minibatch = Minibatch(
        episodes=episodes, weights=weights, value_weights=value_weights, policy_denominator=2.0, value_denominator=3.0
    )
    assert minibatch.episodes is episodes
    assert minibatch.weights is weights
    assert minibatch.value_weights is value_weights
    assert (minibatch.policy_denominator, minibatch.value_denominator) == (2.0, 3.0)
    # Lightning walks through dataclasses that pass a wrapped module and refuses frozen ones
    assert not dataclasses.is_dataclass(minibatch)
