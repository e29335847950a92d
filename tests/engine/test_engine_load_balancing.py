"""Episodes are shared out by tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.engine.load_balancing import assignment


@given(tokens=st.lists(st.integers(1, 500), max_size=60), num_ranks=st.integers(1, 8))
def test_every_episode_goes_to_one_rank_and_no_rank_has_much_more_than_its_part(
    tokens: list[int], num_ranks: int
) -> None:
    shares = assignment(tokens, num_ranks=num_ranks)
    assert sorted(place for share in shares for place in share) == list(range(len(tokens)))
    loads = [sum(tokens[place] for place in share) for share in shares]
    # longest first is at most a third above the best that any sharing can do (Graham 1969), which is at least the mean
    best = max(sum(tokens) / num_ranks, max(tokens, default=0))
    assert max(loads) <= best * 4 / 3 + max(tokens, default=0) / 3


def test_equal_episodes_are_shared_equally() -> None:
    assert [len(share) for share in assignment([7] * 12, num_ranks=4)] == [3, 3, 3, 3]
