"""Options that were built apart: each pair of them runs as it should, or is refused with one line before the start."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from covering import Case, covering_cases, pairs_of
from crossing import OPTIONS, base_of_four_bit, fault_of, is_allowed

SAMPLED = 2
"""Cases of the default tests; each takes about a second."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_of_four_bit(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return covering_cases(OPTIONS, allowed=is_allowed)


@pytest.mark.slow
def test_each_pair_of_options_runs_and_resumes_or_is_refused_at_once(base: Path, cases: list[Case]) -> None:
    assert len(cases) > 50
    faults = {number: (fault, case) for number, case in enumerate(cases) if (fault := fault_of(case, base)) is not None}
    assert not faults


@pytest.mark.parametrize("number", range(SAMPLED))
def test_a_few_pairs_of_options_run_and_resume(number: int, base: Path) -> None:
    layer, critic = {"score_at": "layer", "rule": "no weights"}, {"value_on_dropped": "yes", "critic": "adapter"}
    changes = ({**layer, "critic": "separate", "weights": "lora"}, {**critic, "weights": "lora", "prompts": "bandit"})
    case = {name: values[0] for name, values in OPTIONS.items()} | changes[number]
    assert is_allowed(case)
    assert fault_of(case, base) is None


def test_a_covering_contains_each_pair_that_is_possible() -> None:
    options = {"a": ("1", "2", "3"), "b": ("1", "2"), "c": ("1", "2", "3"), "d": ("1", "2", "3", "4")}

    def allowed(case: Case) -> bool:
        return not (case["a"] == "2" and case["b"] == "2") and not (case["a"] == "3" and case["d"] != "4")

    found = covering_cases(options, allowed=allowed)
    assert all(allowed(case) for case in found)
    every = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    possible = set().union(*(pairs_of(case) for case in every if allowed(case)))
    assert set().union(*map(pairs_of, found)) == possible
    assert len(found) < len(every) / 3
    assert found == covering_cases(options, allowed=allowed), "always the same ones"
