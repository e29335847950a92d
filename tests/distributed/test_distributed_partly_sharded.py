"""A network of which only a part is sharded, on two ranks: the same answer as one process with all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import two_partly_sharded_ranks
from launching import Outcome, outcome_of
from two_partly_sharded_ranks import CASES, METHODS, net, results_of

EXACT = 1e-10
"""fp64: the two sides add the same numbers in another order."""
DIFFERENCES = 1e-5
"""A quotient of differences in fp64, with a step that differs in its last bits."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(Path(two_partly_sharded_ranks.__file__), tmp_path_factory)


@pytest.mark.parametrize("case", CASES)
def test_target_gradient_and_scores_count_each_parameter_once(outcome: Outcome, case: str) -> None:
    # With the checksum: it compares with plain autograd on each rank.
    whole = results_of(net(CASES[case]), list(range(6)))
    first, second = outcome.tensors(case)
    for name in (name for name in whole if name.startswith("direction.")):
        for half in (first, second):
            torch.testing.assert_close(half[name], whole[name], rtol=0, atol=EXACT)
    for method in METHODS:
        expected = whole[f"scores.{method}"]
        allowed = (EXACT if method == "hooks" else DIFFERENCES) * float(expected.abs().max())
        torch.testing.assert_close(first[f"scores.{method}"], expected[[0, 2, 4]], rtol=0, atol=allowed)
        torch.testing.assert_close(second[f"scores.{method}"], expected[[1, 3, 5]], rtol=0, atol=allowed)
        # Full parameters of a displaced forward must not stay behind.
        torch.testing.assert_close(first[f"after.{method}"], whole[f"after.{method}"][[0, 2, 4]], rtol=0, atol=EXACT)


@pytest.mark.parametrize("case", [name for name, frozen in CASES.items() if not frozen])
def test_the_parameters_of_a_sharded_part_are_its_shards_whatever_the_last_forward_left(
    outcome: Outcome, case: str
) -> None:
    for rank in outcome.ranks:
        assert rank[case] == "['body.weight', 'body.bias']"


def test_a_target_that_does_not_fit_ends_in_one_line_on_a_sharded_model(outcome: Outcome) -> None:
    for rank in outcome.ranks:
        assert "does not fit in the device's memory" in rank["no memory"]
        assert "\n" not in rank["no memory"]
