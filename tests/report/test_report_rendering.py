"""What the page of single runs and of pairs of runs tells: only what the runs have, in words that fit them."""

from __future__ import annotations

import json
import re

import pytest

from ippo_lightning.report import CURVES, gather_runs, summarise
from ippo_lightning.report.rendering import render_html
from ippo_lightning.report.tables import results_markdown

DATA = "data:\n  class_path: TextDataModule\n  init_args:\n    seed: 0\n"
ORIGIN = {
    "command": "ippo fit --task arithmetic --method ppo",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "machine": "x86_64, 2 cores",
}


def page(*runs, root):
    comparison = gather_runs(runs, root=root)
    html = render_html(comparison, summarise(comparison), {}, skipped=[])
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL).split())


def counts(*correct):
    columns = {name: [0] * len(correct) for name in ("judged", "unfaithful")}
    return {
        "k": 1,
        "samples": [2] * len(correct),
        "correct": list(correct),
        "majority_vote": [1] * len(correct),
    } | columns


@pytest.fixture
def run(folders):
    folder = folders.run("ppo", 1, iterations=3, episodes=4)
    (folder / "results.json").write_text(json.dumps({"exact_match": 0.75, "num_prompts": 1, "samples_per_prompt": 1}))
    return folder


@pytest.fixture
def pair(folders):
    """Return two runs on the same four test prompts, of which the second run answers one more."""
    runs = [folders.run(method, 1, iterations=3, episodes=4) for method in ("ppo", "ippo")]
    for folder, correct in zip(runs, ((2, 0, 1, 2), (2, 2, 1, 2)), strict=True):
        (folder / "config.yaml").write_text(DATA)
        (folder / "results.json").write_text(json.dumps({"exact_match": sum(correct) / 8}))
        (folder / "test_prompts.json").write_text(json.dumps(counts(*correct) | {"prompts_sha256": "0" * 64}))
    return runs


def test_a_grader_that_tells_nothing_of_reasoning_leaves_no_empty_column(run):
    shown = page(run, root=run / "report")
    assert "Exact match 75.0" not in shown  # other columns stand between
    assert "Method Exact match Kept Seconds / iteration Seeds ppo 75.0 100 " in shown
    for name in ("Unfaithful", "Majority vote", "Pass@"):
        assert name not in shown.partition("Settings")[0].partition("Health")[0]
    comparison = gather_runs([run], root=run / "report")
    assert results_markdown(summarise(comparison)).startswith("| Method | Seeds | EM % | Kept % | s/iteration |")


def test_one_of_anything_is_singular(run):
    (run / "history.jsonl").write_text(json.dumps({"iteration": 0, "update/kept_fraction": 1.0}) + "\n")
    assert "1 method · 1 seed · 1 iteration · 1 test prompt, 1 sampled response per prompt" in page(
        run, root=run / "report"
    )


def test_a_run_that_ended_without_a_test_did_not_stop(run):
    (run / "results.json").unlink()
    rows = [{"iteration": i, "max_iterations": 3, "rollout/reward_mean": 0.5} for i in range(3)]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = page(run, root=run / "report")
    assert "ppo: ended after 3 iterations without a final test" in shown
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert "ppo: stopped after 2 iterations, no final results" in page(run, root=run / "report")


def test_a_run_shows_the_command_the_machine_and_the_versions_that_it_began_with(run):
    (run / "origin.json").write_text(json.dumps(ORIGIN))
    shown = page(run, root=run / "report")
    assert "The run began with: ippo fit --task arithmetic --method ppo" in shown
    assert "Machine x86_64, 2 cores python 3.11.7 torch 2.13.0" in shown


def test_the_page_shows_no_folders_of_the_machine_and_no_secrets(run):
    """Also of a run whose command was recorded with them."""
    config = "loop: {run_dir: /scratch/annleak/x}\npretrained: /home/annleak/mymodel\nhub_token: SECRET\nstop: /a/b\n"
    (run / "config.yaml").write_text(config)
    command = "ippo fit --config /scratch/annleak/a.yaml --x.hub_token=SECRET"
    (run / "origin.json").write_text(json.dumps(ORIGIN | {"command": command}))
    shown = page(run, root=run / "report")
    assert "annleak" not in shown
    assert "SECRET" not in shown
    assert "pretrained: mymodel hub_token: &lt;hidden&gt; stop: /a/b" in shown
    assert (run / "config.yaml").read_text() == config


def test_runs_of_different_origin_each_show_their_own(pair, tmp_path):
    for folder, cores in zip(pair, (2, 64), strict=True):
        (folder / "origin.json").write_text(json.dumps(ORIGIN | {"machine": f"x86_64, {cores} cores"}))
    shown = page(*pair, root=tmp_path)
    assert "ppo, seed 1 began with:" in shown
    assert "ippo, seed 1: x86_64, 64 cores" in shown
    assert "python 3.11.7" in shown  # of both, so it stands once


@pytest.mark.parametrize("content", ["[]", "{", '{"command": 3, "versions": [1], "machine": null}', "[" * 100_000])
def test_an_origin_that_is_no_origin_is_left_out(run, content):
    (run / "origin.json").write_text(content)
    assert "<script" not in page(run, root=run / "report")


def test_two_runs_with_one_test_have_a_paired_difference_over_its_prompts(pair, tmp_path):
    comparison = gather_runs(pair, root=tmp_path)
    difference = summarise(comparison)["differences"]["ippo - ppo"]["exact_match"]
    # 7/8 - 5/8. One prompt of four makes the difference of 1, so a resample has it 0 to 3 times. If this prompt is left
    # out, the interval is Tango's for four equal pairs, whose lower end is -z² / (4 + z²).
    assert (difference["mean"], difference["interval_over"]) == (0.25, "prompts")
    assert difference["interval"] == pytest.approx([-0.4899, 0.75], abs=1e-4)
    shown = page(*pair, root=tmp_path)
    words = (
        "Exact match: 87.5 % against 62.5 %, +25.0 points (95 % interval over the test prompts \N{MINUS SIGN}49.0 to "
        "+75.0)."
    )
    assert words in shown.replace("\N{NO-BREAK SPACE}", " ")
    assert "better" not in shown.partition("Difference from")[2].partition("What the columns mean")[0].partition("3")[2]


def test_runs_with_other_test_prompts_are_not_compared(pair, tmp_path):
    (pair[1] / "config.yaml").write_text(DATA.replace("seed: 0", "seed: 1"))
    assert summarise(gather_runs(pair, root=tmp_path))["differences"] == {}
    assert "Results of ppo and ippo" in page(*pair, root=tmp_path)


@pytest.mark.parametrize(("digest", "compared"), [("1" * 64, False), ("", True), (None, True)])
def test_runs_are_paired_only_over_prompts_that_are_recorded_as_the_same(pair, tmp_path, digest, compared, caplog):
    """The settings name the same file, which may have changed between the runs."""
    path = pair[1] / "test_prompts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts_sha256": digest}))
    differences = summarise(gather_runs(pair, root=tmp_path))["differences"]
    assert bool(differences) == compared
    assert [found["exact_match"]["interval"] for found in differences.values()] == [None] * compared
    assert ("does not record which prompts" in caplog.text) == compared


def test_several_runs_without_a_featured_one_all_tell_of_their_health(pair, tmp_path):
    for folder, fraction in zip(pair, (0.9, 0.1), strict=True):
        row = {"iteration": 0, "update/kept_fraction": 1.0, "update/clip_fraction": fraction}
        (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    shown = page(*pair, root=tmp_path)
    assert "Health of ppo: 1 bad (clip fraction). Health of ippo: 1 good." in shown


@pytest.fixture
def control_run(folders):
    folder = folders.run("ppo", 1, iterations=1)
    (folder / "episodes.jsonl").unlink()
    (folder / "evaluations.jsonl").write_text("")
    results = {"episode_return": 187.5, "episode_length": 187.5, "environment": "CartPole-v1", "num_episodes": 100}
    (folder / "results.json").write_text(json.dumps(results))
    rows = [
        {"iteration": i, "rollout/finished_episodes": 5.0, "rollout/episode_return": 20.0 + i, "rollout/kl": 0.0,
         "rollout/reward_mean": 1.0, "rollout/response_tokens_mean": 1.0, "update/kept_fraction": 0.5,
         "update/clip_fraction": 0.5, "update/approx_kl": 0.5, "time/iteration_seconds": 1.0}
        for i in range(3)
    ]  # fmt: skip
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_in_environments_has_returns_and_no_prompts(control_run):
    (control,) = gather_runs([control_run], root=control_run / "report").methods["ppo"].runs
    curves = {name for name, curve in CURVES.items() if curve.read(control)}
    assert curves == {"episode_return", "clip_fraction", "kept_fraction", "iteration_seconds"}
    shown = page(control_run, root=control_run / "report")
    assert "100 test episodes" in shown
    assert "The mean return of the test episodes is 188." in shown
    assert "Method Return Episode length Kept Seconds / iteration Seeds ppo 188 188 50" in shown
    words = set(re.findall(r"[a-z]+", shown.lower()))
    assert not words & {"prompt", "prompts", "response", "responses", "token", "tokens", "demonstrations"}


def test_the_results_of_an_earlier_version_count_episodes_as_prompts(control_run):
    path = control_run / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "num_prompts": results.pop("num_episodes"), "num_episodes": None}))
    assert "100 test episodes" in page(control_run, root=control_run / "report")


def test_the_reward_of_a_graded_test_is_shown_and_not_compared(pair, tmp_path):
    for folder in pair:
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps(results | {"reward": 0.5}))
    comparison = gather_runs(pair, root=tmp_path)
    results = summarise(comparison)
    assert results["methods"]["ppo"]["reward"] == 0.5
    assert set(results["differences"]["ippo - ppo"]) == {"exact_match", "unfaithful_fraction"}
    for folder in pair:  # without a grader
        (folder / "results.json").write_text(json.dumps({"reward": 0.5}))
    difference = summarise(gather_runs(pair, root=tmp_path))["differences"]["ippo - ppo"]
    assert difference["reward"]["mean"] == 0.0
