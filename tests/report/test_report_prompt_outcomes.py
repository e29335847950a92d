"""The file with the counts of each prompt is read only if it is whole and belongs to the results."""

from __future__ import annotations

import json

import pytest

from ippo_lightning.report import read_run
from ippo_lightning.report.prompt_outcomes import read_outcomes
from ippo_lightning.storage.checksums import with_checksum

GOOD = {
    "k": 2, "samples": [2, 2], "correct": [2, 1], "judged": [2, 1], "unfaithful": [0, 1], "majority_vote": [1.0, None],
}  # fmt: skip
RESULTS = {"exact_match": 0.75}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_a_run_gives_its_counts_with_its_results(folders):
    folder = folders.run("ppo", 1, iterations=2)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    write(folder / "test_prompts.json", with_checksum(GOOD))
    outcomes = read_run(folder).prompt_outcomes
    assert outcomes is not None
    assert (outcomes.k, outcomes.correct, outcomes.majority_vote) == (2, (2, 1), (1.0, None))


@pytest.mark.parametrize(
    "change",
    [
        {"samples": [2]}, {"samples": [0, 2]}, {"correct": [3, 1]}, {"judged": [2, 2]}, {"unfaithful": [0, -1]},
        {"correct": [True, 1]}, {"correct": None}, {"majority_vote": "11"}, {"k": None}, {"samples": [10**9, 2]},
        {"samples": [], "correct": [], "judged": [], "unfaithful": [], "majority_vote": []}, {"sha256": "0" * 64},
    ],
)  # fmt: skip
def test_a_changed_file_is_left_out(tmp_path, change):
    assert read_outcomes(write(tmp_path / "p.json", GOOD | change), results=RESULTS) is None


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "[1]", "\x00"])
def test_a_broken_file_is_left_out(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    assert read_outcomes(tmp_path / "p.json", results=RESULTS) is None


def test_counts_of_another_test_are_left_out(tmp_path):
    path = write(tmp_path / "p.json", GOOD)
    assert read_outcomes(path, results=RESULTS) is not None
    assert read_outcomes(path, results={"exact_match": 0.74}) is None
    assert read_outcomes(path, results=None) is None
    assert read_outcomes(tmp_path / "none.json", results=RESULTS) is None
