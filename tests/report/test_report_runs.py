from __future__ import annotations

import json

import pytest

from ippo_lightning.errors import UserError
from ippo_lightning.report import json_lines, read_run


def test_all_files_of_a_run_are_read(folders):
    run = read_run(folders.run("ippo", 7, iterations=6, episodes=5))
    assert (run.method, run.seed, run.finished) == ("ippo", 7, True)
    assert list(run.series("update/kept_fraction")) == list(range(6))
    assert list(run.validation("exact_match")) == [2, 5]
    assert len(run.episodes) == 30
    assert run.config == "method: ippo\nseed: 7\n"
    assert run.result("k") == 4


def test_the_last_line_may_be_cut_off(folders):
    folder = folders.run("ppo", 1, iterations=4)
    with (folder / "history.jsonl").open("a") as handle:
        handle.write('{"iteration": 4, "sec')
    run = read_run(folder)
    assert list(run.series("time/iteration_seconds")) == [0, 1, 2, 3]
    assert run.unreadable_lines == 0


@pytest.mark.parametrize(
    "broken", ["{", "[1, 2]", '"text"', "null", "[" * 100_000, '{"time/iteration_seconds": 1}', '{"iteration": true}']
)
def test_an_unreadable_line_in_the_middle_is_counted_and_left_out(folders, broken):
    folder = folders.run("ppo", 1, iterations=2)
    with (folder / "history.jsonl").open("a") as handle:
        handle.write(broken + '\n{"iteration": 2, "time/iteration_seconds": 1.5}\n')
    run = read_run(folder)
    assert list(run.series("time/iteration_seconds")) == [0, 1, 2]
    assert run.unreadable_lines == 1


def test_a_line_beyond_the_limit_is_left_out(folders, monkeypatch):
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 1000)
    folder = folders.run("ppo", 1, iterations=2)
    with (folder / "history.jsonl").open("a") as handle:
        handle.write(json.dumps({"iteration": 2, "time/iteration_seconds": 1.0, "junk": "x" * 5000}) + "\n")
        handle.write('{"iteration": 3, "time/iteration_seconds": 2.0}\n')
    run = read_run(folder)
    assert list(run.series("time/iteration_seconds")) == [0, 1, 3]
    assert run.unreadable_lines == 1


def test_an_iteration_repeated_after_a_resume_counts_once_with_its_last_numbers(folders):
    folder = folders.run("ppo", 1, iterations=3)
    with (folder / "history.jsonl").open("a") as handle:
        handle.write('{"iteration": 1, "time/iteration_seconds": 99.0}\n')
    assert read_run(folder).series("time/iteration_seconds")[1] == 99.0
    assert len(read_run(folder).history) == 3


def test_only_validation_rows_make_the_learning_curve(folders):
    folder = folders.run("ppo", 1, iterations=3)
    (folder / "evaluations.jsonl").write_text(
        '{"iteration": 1, "split": "validation", "exact_match": 0.5}\n'
        '{"iteration": 2, "split": "test", "exact_match": 0.9}\n'
    )
    assert read_run(folder).validation("exact_match") == {1: 0.5}


def test_numbers_that_are_not_finite_are_missing(folders):
    folder = folders.run("ppo", 1, iterations=1)
    (folder / "history.jsonl").write_text(
        '{"iteration": 0, "time/iteration_seconds": NaN, "update/kept_fraction": Infinity}\n'
    )
    assert read_run(folder).series("time/iteration_seconds") == {}
    assert read_run(folder).series("update/kept_fraction", "iteration") == {0: 0.0}


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_run_with_unreadable_results_did_not_finish(folders, text):
    folder = folders.run("ppo", 1, iterations=2)
    (folder / "results.json").write_text(text)
    assert not read_run(folder).finished


def test_long_texts_are_cut_when_read(folders):
    folder = folders.run("ippo", 1, iterations=1, episodes=1)
    row = {"iteration": 0, "prompt": "p" * 10_000, "response": "r" * 1_000_000, "label": "l" * 500, "score": 1}
    (folder / "episodes.jsonl").write_text(json.dumps(row) + "\n")
    (episode,) = read_run(folder).episodes
    assert len(episode.prompt) < 700
    assert len(episode.response) < 700
    assert len(episode.label) < 100
    assert episode.kept is None


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^folder: .*history\.jsonl") as error:
        read_run(tmp_path / "missing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"label": "any words at all"}, "any words at all"),
        ({"label": "faithful", "correct": False}, "faithful"),
        ({"label": None, "correct": True}, "right"),
        ({"label": None, "correct": False}, "wrong"),
        ({"label": None, "correct": None}, ""),
        ({"label": 3, "correct": "yes"}, ""),
    ],
)
def test_a_grader_without_labels_leaves_right_and_wrong(folders, row, label):
    folder = folders.run("ppo", 1, iterations=1)
    (folder / "episodes.jsonl").write_text(json.dumps({"iteration": 0, **row}) + "\n")
    assert read_run(folder).episodes[0].label == label


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ({"reasons": ["influence", "length"], "factors": [0.0, 1.5]}, (("influence", 0.0), ("length", 1.5))),
        ({"reasons": [], "factors": []}, ()),
        ({"reasons": ["influence"], "factors": [None]}, ()),
        ({"reasons": ["influence"], "factors": []}, None),
        ({"reasons": "influence", "factors": [0.0]}, None),
        ({}, None),
    ],
)
def test_who_changed_an_episode_is_read(folders, row, changes):
    folder = folders.run("ppo", 1, iterations=1)
    (folder / "episodes.jsonl").write_text(json.dumps({"iteration": 0, **row}) + "\n")
    assert read_run(folder).episodes[0].changes == changes
