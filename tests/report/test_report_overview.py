"""The sentences of a report that compares nothing: where the run ended, how exact that is, where it started."""

from __future__ import annotations

import json

import pytest

from ippo_lightning.report import gather_runs, summarise
from ippo_lightning.report.overview import overview
from ippo_lightning.storage.public_command import public_command_line


@pytest.fixture
def run(folders):
    folder = folders.run("ppo", 1, iterations=2)
    (folder / "results.json").write_text(json.dumps({"exact_match": 0.75, "iterations": 6}))
    rewards = [{"iteration": i, "rollout/reward_mean": value} for i, value in enumerate((0.5, 0.6, 0.6, 0.6, 0.7, 0.9))]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rewards))
    matches = [{"iteration": i, "split": "validation", "exact_match": v} for i, v in ((0, 0.4), (3, 0.5), (6, 0.6))]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in matches))
    return folder


def sentences(*folders):
    comparison = gather_runs(folders, root=folders[0] / "report")
    return overview(comparison, summarise(comparison))


def test_a_run_alone_is_told_from_start_to_end(run):
    assert sentences(run) == [
        "The fraction of right responses to the test prompts is 75.0 %.",
        "From the start to the last third, exact match on validation prompts went from 40.0 % to 60.0 %.",
    ]


def test_a_start_that_nothing_measured_comes_with_the_command_that_measures_it(run):
    (run / "evaluations.jsonl").unlink()
    command = f"ippo evaluate {run} --baseline start"
    assert sentences(run)[1:] == [
        f"The start was not measured; this command does it, and a new report has it: {public_command_line(command)}"
    ]


def test_a_start_that_ippo_evaluate_measured_stands_beside_the_final_test(run):
    (run / "evaluations.jsonl").unlink()
    settings = {"model": {"name": "start"}, "split": "test"}
    (run / "evaluations" / "one").mkdir(parents=True)
    content = {"settings": settings, "numbers": {"exact_match": {"value": 0.5}}}
    (run / "evaluations" / "one" / "evaluation.json").write_text(json.dumps(content))
    assert sentences(run) == [
        "The fraction of right responses to the test prompts is 75.0 %.",
        "Before training it was 50.0 %.",
    ]


@pytest.mark.parametrize(
    ("iterations", "words"),
    [
        ([0], "At the start, exact match on validation prompts was 40.0 %."),
        ([3, 6], "From iteration 3 to the last third, exact match on validation prompts went from 40.0 % to 50.0 %."),
    ],
    ids=["only the start", "not the start"],
)
def test_the_first_evaluation_is_called_the_start_only_if_it_is(run, iterations, words):
    rows = [{"iteration": i, "exact_match": 0.4 + 0.1 * place} for place, i in enumerate(iterations)]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sentences(run)
    assert found[1] == words
    assert any("was not measured" in sentence for sentence in found) == (0 not in iterations)


def test_a_run_without_a_grader_has_a_reward(run):
    (run / "results.json").write_text(json.dumps({"reward": 1.25}))
    assert sentences(run)[0] == "The mean reward on the test prompts is 1.25."


def test_a_single_run_has_an_interval_over_its_prompts(run):
    counts = {
        "k": 1,
        "samples": [4, 4],
        "correct": [4, 2],
        "judged": [0, 0],
        "unfaithful": [0, 0],
        "majority_vote": [1, 0],
    }
    (run / "test_prompts.json").write_text(json.dumps(counts))
    # Of two prompts with 1 and 1/2, resamples have the means 1/2, 3/4 and 1; if both were 1, it would begin at 34.2 %.
    assert sentences(run)[0] == (
        "The fraction of right responses to the test prompts is 75.0 % (95 % interval over prompts 34.2 to 100.0 %)."
    )


def test_a_run_in_environments_has_a_return(run):
    (run / "results.json").write_text(json.dumps({"episode_return": 200.0, "environment": "CartPole-v1"}))
    assert sentences(run)[0] == "The mean return of the test episodes is 200."


def test_several_runs_are_named(run, folders):
    other = folders.run("ippo", 1, iterations=2)
    found = sentences(run, other)
    assert found[0].startswith("The fraction of right responses to the test prompts is 75.0 % in ppo and ")
    # One sentence per number, and not one per number and run.
    assert len({sentence[:60] for sentence in found}) == len(found)


def test_a_run_that_did_not_finish_has_no_final_numbers(run):
    (run / "results.json").unlink()
    assert sentences(run)[0].startswith("From the start to the last third, exact match on validation prompts")
