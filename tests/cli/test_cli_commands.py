"""The three commands, run on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiment_files import change, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from ippo_lightning.cli.main import main

KEYS = {"exact_match", "majority_vote", "pass_at_k", "unfaithful_fraction"}


def parameters(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["parameters"]


def fit(experiment: dict[str, Any], folder: Path, *words: str) -> None:
    assert main(["fit", "--config", write(experiment, folder), *words]) == 0


def test_fit_leaves_a_whole_run_behind(experiment: dict[str, Any], tmp_path: Path) -> None:
    fit(experiment, tmp_path)
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert all(0 <= row["update/kept_fraction"] <= 1 and row["time/iteration_seconds"] > 0 for row in rows)
    assert all("influence/gradient_norm" in row and "time/rollout_seconds" in row for row in rows)
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["iteration"] for row in evaluations] == [0, 2, 4]
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results.keys() >= KEYS | {"num_prompts", "samples_per_prompt", "iterations", "seconds"}
    assert results["num_prompts"] == 4
    assert (run / "csv" / "metrics.csv").read_text(encoding="utf-8").count("\n") > 4
    assert AutoTokenizer.from_pretrained(run / "model").pad_token is not None
    assert AutoModelForCausalLM.from_pretrained(run / "model").config.model_type == "llama"


@pytest.mark.slow
def test_the_same_yaml_and_seed_give_bit_equal_parameters(experiment: dict[str, Any], tmp_path: Path) -> None:
    for name in ("first", "second", "other"):
        change(experiment, "loop.run_dir", str(tmp_path / name))
        fit(experiment, tmp_path, "--seed_everything", "4" if name == "other" else "3")
    first, second, other = (parameters(tmp_path / name) for name in ("first", "second", "other"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_saved_configuration_makes_the_same_run_again(experiment: dict[str, Any], tmp_path: Path) -> None:
    fit(experiment, tmp_path)
    saved = tmp_path / "run" / "config.yaml"
    assert main(["fit", "--config", str(saved), "--loop.run_dir", str(tmp_path / "again")]) == 0
    first, again = parameters(tmp_path / "run"), parameters(tmp_path / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_resumed_run_equals_an_unbroken_one(experiment: dict[str, Any], tmp_path: Path) -> None:
    change(experiment, "loop.run_dir", str(tmp_path / "whole"))
    fit(experiment, tmp_path)
    change(experiment, "loop.run_dir", str(tmp_path / "broken"))
    fit(experiment, tmp_path, "--loop.max_iterations", "2")
    fit(experiment, tmp_path, "--loop.resume", "true")
    whole, broken = parameters(tmp_path / "whole"), parameters(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    histories = [
        [json.loads(line)["rollout/reward_mean"] for line in (tmp_path / name / "history.jsonl").open(encoding="utf-8")]
        for name in ("whole", "broken")
    ]
    assert histories[0] == histories[1]


def test_later_files_and_dotted_keys_win(experiment: dict[str, Any], tmp_path: Path) -> None:
    config = write(experiment, tmp_path)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"loop": {"max_iterations": 2}, "callbacks": []}), encoding="utf-8")
    run = str(tmp_path / "other")
    assert main(["fit", "--config", config, "--config", str(overlay), "--loop.run_dir", run]) == 0
    saved = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text(encoding="utf-8"))
    saved = saved.get("fit", saved)
    assert saved["loop"]["max_iterations"] == 2
    assert not saved["callbacks"]
    assert saved["model"]["init_args"]["update"]["num_epochs"] == 2


def test_print_config_prints_every_default(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", write(experiment, tmp_path), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["update"]["max_grad_norm"] == 1.0


def test_evaluation_without_a_grader_takes_that_of_the_task(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(experiment, "model.init_args.grader", None)
    assert main(["evaluate", "--config", write(experiment, tmp_path)]) == 0
    assert "exact_match" in capsys.readouterr().out


def test_evaluate_measures_a_checkpoint(experiment: dict[str, Any], tmp_path: Path) -> None:
    fit(experiment, tmp_path)
    output = tmp_path / "numbers" / "test.json"
    config = str(tmp_path / "experiment.yaml")
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert main(["evaluate", "--config", config, "--checkpoint", checkpoint, "--output", str(output)]) == 0
    measured = json.loads(output.read_text(encoding="utf-8"))
    trained = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert {key: measured[key] for key in KEYS} == {key: trained[key] for key in KEYS}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[1], [1, 2]])
def test_compare_makes_one_table_and_one_page(
    seeds: list[int], experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment["callbacks"] = [{"class_path": "ippo_lightning.callbacks.EpisodeLog"}]
    reward = {
        "class_path": "ippo_lightning.rewards.grade_reward",
        "init_args": {"grader": "ippo_lightning.tasks.grade_arithmetic"},
    }
    change(experiment, "model.init_args.reward", reward)
    config = write(experiment, tmp_path)
    root = tmp_path / "compare"
    settings = {
        "run_dir": str(root),
        "baseline": "ppo",
        "featured": "ippo",
        "seeds": seeds,
        "jobs": 2,
        "overrides": {"loop.max_iterations": 2},
        "methods": {
            "sft": {"title": "SFT", "command": "evaluate", "config": [config]},
            "ppo": {"title": "PPO", "config": [config]},
            "ippo": {
                "title": "I-PPO",
                "config": [config],
                "overrides": {"callbacks": [{"class_path": "ippo_lightning.callbacks.InfluenceFilter"}]},
            },
        },
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ["compare", "--config", str(tmp_path / "compare.yaml")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert all(title in printed for title in ("SFT", "PPO", "I-PPO"))
    results = json.loads((root / "results.json").read_text(encoding="utf-8"))
    assert set(results["methods"]) == {"sft", "ppo", "ippo"}
    assert set(results["differences"]) == {"sft - ppo", "ippo - ppo"}
    assert [name for name, method in results["methods"].items() if method["featured"]] == ["ippo"]
    assert all(set(method) >= KEYS for method in results["methods"].values())
    prompts = [json.loads((root / name / "seed_1" / "test_prompts.json").read_text()) for name in results["methods"]]
    assert {tuple(counts) for counts in prompts} == {tuple(prompts[0])}  # the column that only evaluates has them too
    for name in ("ppo", "ippo"):
        assert len(results["methods"][name]["kept_fraction"]) == 2  # one mean per iteration
        assert len(results["methods"][name]["iteration_seconds"]) == 2
    assert "</html>" in (root / "report.html").read_text(encoding="utf-8")

    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("history.jsonl")}
    assert main(command) == 0
    num_runs = 1 + 2 * len(seeds)  # the start is measured once
    assert f"{num_runs} of {num_runs} runs are finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in root.rglob("history.jsonl")} == stamps


def test_a_step_that_overflows_is_one_line_that_names_its_file(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward of -1e38 is a number of float32, and its square in the loss of the critic is not."""
    small = ("--model.init_args.update.minibatch_size", "4", "--callbacks", "[]")
    words = [
        "fit",
        "--config",
        write(experiment, tmp_path),
        "--model.init_args.missing_eos_penalty",
        "1e38",
        *small,
    ]
    assert main(words) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("ippo: stopped: step 0: NaN or infinity in ")
    file = tmp_path / "run" / "nonfinite" / "step_0000000.pt"
    assert line.endswith(f"see {file}")
    step = torch.load(file, weights_only=True)
    assert step["rows"]
    assert all(bool(torch.isfinite(value).all()) for value in step["parameters"].values())
    assert set(step["rows"].values()) == {"loss"}
