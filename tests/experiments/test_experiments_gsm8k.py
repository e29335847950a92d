"""The GSM8K experiments on the real data, with everything that costs time made small: they run from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ippo_lightning.cli.main import main

ROOT = Path(__file__).resolve().parents[2] / "experiments"
POLICY = "model.init_args.policy.init_args"
TASK = "data.init_args.task.init_args"
SMALL_DATA = {
    "max_characters": 200,
    "num_train": 64,
    "num_validation": 2,
    "num_test": 4,
    "num_influence_demonstrations": 4,
}
BATCH_SIZE = 4


def words(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def small_run(run_dir: Path, data: Path, sampling: str) -> list[str]:
    return words(
        {
            "loop.run_dir": run_dir,
            "loop.max_iterations": 2,
            "loop.evaluate_every_n_iterations": 0,
            "loop.progress_bar": "false",
            f"model.init_args.{sampling}.num_responses": 2,
            f"model.init_args.{sampling}.max_new_tokens": 12,
            "data.init_args.batch_size": BATCH_SIZE,
            f"{TASK}.path": data,
            **{f"{TASK}.{name}": value for name, value in SMALL_DATA.items()},
        }
    )


@pytest.fixture(scope="module")
def runs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the three runs, the later ones starting from the model of the first."""
    if not (shared_data / "gsm8k" / "train.jsonl").is_file():
        pytest.skip(f"no gsm8k/train.jsonl in {shared_data}")
    torch.set_num_threads(1)
    folder, data = tmp_path_factory.mktemp("gsm8k"), shared_data / "gsm8k"
    sft = ["--base", str(ROOT / "base/sft.yaml"), "--task", str(ROOT / "tasks/gsm8k/sft.yaml")]
    ppo = ["--base", str(ROOT / "base/ppo.yaml"), "--task", str(ROOT / "tasks/gsm8k.yaml")]
    ippo = ["--method", str(ROOT / "methods/paper.yaml")]
    tiny_model = {
        # one batch, again and again, so that the loss has to fall
        f"{TASK}.num_train": BATCH_SIZE,
        "loop.max_iterations": 6,
        "model.init_args.optimizer.learning_rate": 0.01,
        "model.init_args.optimizer.warmup_iterations": 0,
        f"{POLICY}.config.hidden_size": 32,
        f"{POLICY}.config.intermediate_size": 64,
        f"{POLICY}.config.num_hidden_layers": 1,
        f"{POLICY}.tokenizer.init_args.path": data,
        f"{POLICY}.tokenizer.init_args.vocab_size": 300,
    }
    from_sft = words({f"{POLICY}.pretrained": folder / "sft" / "model", "model.init_args.update.num_epochs": 1})
    assert main(["fit", *sft, *small_run(folder / "sft", data, "evaluation"), *words(tiny_model)]) == 0
    assert main(["fit", *ppo, *small_run(folder / "ppo", data, "sampling"), *from_sft]) == 0
    assert main(["fit", *ppo, *ippo, *small_run(folder / "ippo", data, "sampling"), *from_sft]) == 0
    return folder


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["sft", "ppo", "ippo"])
def test_the_run_takes_its_steps_and_measures_the_test_problems(runs: Path, name: str) -> None:
    rows = history(runs / name)
    assert [row["iteration"] for row in rows] == list(range(6 if name == "sft" else 2))
    assert all(row["progress/optimizer_steps"] >= 1 for row in rows if row.get("update/kept_fraction", 1.0) > 0)
    assert "exact_match" in (runs / name / "results.json").read_text(encoding="utf-8")


def test_supervised_training_lowers_the_loss_and_leaves_a_model_for_plain_transformers(runs: Path) -> None:
    losses = [row["sft/loss"] for row in history(runs / "sft")]
    assert losses[-1] < losses[0] - 0.5
    tokenizer = AutoTokenizer.from_pretrained(runs / "sft" / "model")
    model = AutoModelForCausalLM.from_pretrained(runs / "sft" / "model")
    assert tokenizer.decode(tokenizer("2+2 = <<2+2=4>>4\n#### 4").input_ids) == "2+2 = <<2+2=4>>4\n#### 4"
    assert model.config.vocab_size == len(tokenizer) == 300


def test_plain_ppo_keeps_every_episode_and_the_filter_scores_every_one(runs: Path) -> None:
    assert {row["update/kept_fraction"] for row in history(runs / "ppo")} == {1.0}
    assert not [name for row in history(runs / "ppo") for name in row if name.startswith("influence")]
    for row in history(runs / "ippo"):
        assert row["rollout/episodes"] == BATCH_SIZE * 2
        assert [name for name in row if name.startswith("influence")]
