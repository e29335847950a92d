"""A reward model of one's own, a judge beside it, and PPO without SFT: what docs/guides/rlhf.md describes."""

from __future__ import annotations

import json
import math
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiment_files import REWARD_TASKS, TINY, parsed
from transformers import BertConfig, BertModel

from ippo_lightning.cli.main import main
from ippo_lightning.cli.parsers import experiment_parser
from ippo_lightning.data import byte_tokenizer
from ippo_lightning.rewards import RewardModel

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = {"good": 3.0, "fine": 1.0, "bad": -3.0}
TEXTS = [
    (f"{film} {number} is {word}", rating) for number in range(8) for film in "abc" for word, rating in WORDS.items()
]
needs_vader = pytest.mark.skipif(find_spec("vaderSentiment") is None, reason="needs vaderSentiment")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rated texts, and a reward model that the example has made from them and from a tiny encoder."""
    folder = tmp_path_factory.mktemp("sentiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_reward_model(patch)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("texts.tsv", "reward_model"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_reward_model(patch: pytest.MonkeyPatch) -> None:
    Path("texts.tsv").write_text("".join(f"{row}\t{rating}\t{text}\n" for row, (text, rating) in enumerate(TEXTS)))
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    # without dropout, in which so small a network would learn nothing
    common = {"max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes, **common)).save_pretrained("encoder")
    tokenizer.save_pretrained("encoder")
    words = ["--texts", "texts.tsv", "--output", "reward_model", "--encoder", "encoder", "--learning_rate", "0.01"]
    patch.setattr("sys.argv", ["train_reward_model.py", *words, "--epochs", "8"])
    runpy.run_path(str(EXAMPLES / "train_reward_model.py"), run_name="__main__")


def experiment(grader: dict[str, Any]) -> str:
    """The shipped task with everything made small."""
    policy = {"pretrained": None, "config": TINY, "tokenizer": {"class_path": "byte_tokenizer"}, "lora": None}
    model = {
        "policy": {"init_args": policy},
        "reward": {"init_args": {"pretrained": "reward_model"}},
        "grader": grader,
        "sampling": {"num_responses": 2, "max_new_tokens": 6},
        "evaluation": {"num_responses": 1, "max_new_tokens": 6},
    }
    task = {"train": {"path": "texts.tsv", "columns": {"first_words": 3}}, "num_validation": 4, "num_test": 4}
    data = {"batch_size": 4, "evaluation_batch_size": 4, "task": {"init_args": task}}
    loop = {"run_dir": "run", "max_iterations": 2, "evaluate_every_n_iterations": 2, "progress_bar": False}
    overlay = {"loop": loop, "model": {"init_args": model}, "data": {"init_args": data}}
    Path("small.yaml").write_text(yaml.safe_dump(overlay))
    return "small.yaml"


def lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path("run") / file).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("grader", "target", "labels"),
    [
        pytest.param({"class_path": "SentimentGrader"}, "AverageReward", True, marks=[needs_vader, pytest.mark.slow]),
        (
            {
                "class_path": "RewardGrader",
                "init_args": {"reward": {"class_path": "RewardModel", "init_args": {"pretrained": "reward_model"}}},
            },
            "SequenceReturn",
            False,
        ),
    ],
    ids=["lexicon", "classifier"],
)
@pytest.mark.usefixtures("folder")
def test_a_policy_trains_on_a_reward_model_and_another_judge_evaluates(
    grader: dict[str, Any], target: str, labels: bool
) -> None:
    words = ["fit", "--task", "sentiment", "--method", "iif_text", "--config", experiment(grader)]
    assert main([*words, f"--callbacks.init_args.target={target}"]) == 0
    history, evaluations = lines("history.jsonl"), lines("evaluations.jsonl")
    assert len(history) == 2
    for row in history:
        assert 0 < row["influence/scored_kept_fraction"] <= 1
        assert math.isfinite(row["rollout/reward_mean"])
    assert history[0]["rollout/kl_coef"] == 0.04 != history[1]["rollout/kl_coef"], "the coefficient adapts"
    for row in evaluations:
        assert math.isfinite(row["reward"])  # of the model
        assert 0 <= row["exact_match"] <= 1  # of the judge
        assert any(name.startswith("label/") for name in row) == labels


@pytest.mark.usefixtures("folder")
def test_the_example_makes_a_reward_model_that_knows_the_ratings() -> None:
    reward = RewardModel("reward_model")
    found = reward(["a 99 is "] * 3, list(WORDS), [{}] * 3)
    assert found[0] > found[1] > found[2]
    assert found[0] > 0 > found[2]


@pytest.mark.parametrize("task", REWARD_TASKS)
def test_a_task_has_a_reward_a_judge_and_adaptive_kl(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    settings = parsed(experiment_parser(), ["--task", task, "--method", "iif_text"])
    model = settings["model"]["init_args"]
    assert model["reward"]["class_path"].endswith("RewardModel")
    assert model["grader"]["class_path"] != model["reward"]["class_path"]
    assert model["kl_controller"]["class_path"].endswith("AdaptiveKLController")
    assert model["kl_controller"]["init_args"]["coef"] == 0.04
    (influence,) = [item["init_args"] for item in settings["callbacks"] if "InfluenceFilter" in item["class_path"]]
    assert influence["rule"]["init_args"] == {"fraction": 1.0}
    assert influence["target"]["class_path"].endswith("SequenceReturn")
